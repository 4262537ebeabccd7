"""Running somebody's model without leaving a trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from topiarist.errors import InputError, TraceError
from topiarist.inputs import call

_CONTENTS = ("_parameters", "_buffers", "_modules")


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[nn.Module]:
    """Inside the ``with``, ``model`` is in evaluation mode and records no gradients; afterwards it is as it was.

    What the modules hold (training flags, caches and counters that the forward pass leaves, buffers and what is in
    them) and the state of torch's random number generators come back, also after an error.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> with undisturbed(norm):
        ...     norm.training
        False
        >>> norm.training
        True
    """
    if any(torch.nn.parameter.is_lazy(p) for p in model.parameters()):
        raise InputError(f"{type(model).__name__} has lazy layers that hold no data yet; run the model once first")
    held = [_held(module) for module in model.modules()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    devices = {t.device.index for t in (*model.parameters(), *model.buffers()) if t.device.type == "cuda"}
    with torch.random.fork_rng(sorted(i for i in devices if i is not None)), torch.no_grad():
        try:
            for module, *_ in held:
                module.training = False  # train() may be overridden
            yield model
        finally:
            for entry in held:
                _put_back(*entry)
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


def _held(module: nn.Module) -> tuple[nn.Module, bool, dict[str, Any], dict[str, dict[str, Any]]]:
    return module, module.training, dict(module.__dict__), {name: dict(module.__dict__[name]) for name in _CONTENTS}


def _put_back(module: nn.Module, training: bool, held: dict[str, Any], contents: dict[str, dict[str, Any]]) -> None:
    module.training = training
    module.__dict__.clear()
    module.__dict__.update(held)
    for name, values in contents.items():
        held[name].clear()
        held[name].update(values)


def run(model: nn.Module, example_inputs: Any) -> Any:
    """The model's output on ``example_inputs``.

    Raises:
        TraceError: the model fails on them; the message says how and with what shapes.
    """
    try:
        return call(model, example_inputs)
    except Exception as error:
        shapes = [
            tuple(v.shape) for v in torch.utils._pytree.tree_leaves(example_inputs) if isinstance(v, torch.Tensor)
        ]
        raise TraceError(
            f"{type(model).__name__} does not run on the example inputs, of shapes {shapes}: "
            f"{type(error).__name__}: {error}"
        ) from error
