"""Run a model and leave no trace: everything a forward or backward pass may change is put back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from topiarist.graph.states import random_states_kept


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Put back, also after an error: training flags, buffers, ``.grad``, ``requires_grad`` and every random state.

    Buffers keep their identity as well as their values. Parameters' values are the caller's business: a backward pass
    does not change them. Random states are those of torch (CPU, and CUDA where the model lies there), NumPy and Python.

    Example:
        >>> norm = nn.BatchNorm1d(2)
        >>> with preserved(norm):
        ...     _ = norm(torch.randn(4, 2))
        >>> norm.running_mean, norm.num_batches_tracked
        (tensor([0., 0.]), tensor(0))
    """
    training = {module: module.training for module in model.modules()}
    buffers = [
        (module, dict(module._buffers), {n: b.detach().clone() for n, b in module._buffers.items() if b is not None})
        for module in model.modules()
    ]
    parameters = [
        (parameter, parameter.requires_grad, parameter.grad, None if parameter.grad is None else parameter.grad.clone())
        for parameter in model.parameters()
    ]
    try:
        with random_states_kept(model):
            yield
    finally:
        for module, mode in training.items():
            module.training = mode
        with torch.no_grad():
            for module, owned, values in buffers:
                module._buffers.clear()
                module._buffers.update(owned)
                for name, value in values.items():
                    _put_back(module._buffers[name], value)
            for parameter, requires_grad, grad, grad_value in parameters:
                parameter.requires_grad_(requires_grad)
                _put_back(grad, grad_value)
                parameter.grad = grad


def _put_back(tensor: Tensor | None, value: Tensor | None) -> None:
    if tensor is not None and value is not None and not torch.equal(tensor, value):
        tensor.copy_(value)
