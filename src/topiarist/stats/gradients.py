"""The mean gradient of the loss over data."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from topiarist.errors import InputError
from topiarist.inputs import as_batch, call
from topiarist.stats.preserve import preserved


def collect_gradients(
    model: nn.Module,
    data: Iterable[Any],
    loss: Callable[[Any, Any], Tensor],
    num_batches: int | None = None,
) -> dict[str, Tensor]:
    """The mean over batches of ∂ loss(model(inputs), targets) / ∂ w, for every floating-point parameter w.

    The model runs in evaluation mode, so that the result depends neither on dropout nor on the other samples of a
    batch, and is afterwards as it was, bit for bit: flags, buffers, ``.grad``, ``requires_grad`` and random states.
    Frozen parameters get gradients too; one that the loss does not reach gets zeros. Sums run at least in single
    precision.

    Args:
        data: batches ``(inputs, targets)`` on any device, inputs a tensor, a tuple of positional or a dict of keyword
            arguments. A loader with ``set_epoch`` is put to epoch 0, so that the result is the same each time.
        loss: maps outputs and targets to a scalar.
        num_batches: stop after that many; None takes all.

    Returns:
        Per parameter's name, as in ``model.named_parameters()``, a tensor of its shape on its device.

    Raises:
        InputError: there are no batches, a batch is not a pair, or a loss is not one finite number.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> data = [(torch.tensor([[2.0]]), None), (torch.tensor([[4.0]]), None)]
        >>> collect_gradients(model, data, lambda outputs, targets: outputs.sum())
        {'weight': tensor([[3.]])}
    """
    if num_batches is not None and num_batches < 1:
        raise InputError(f"asked for gradients over {num_batches} batches, try 1 or more, or None for all")
    parameters = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    sums = {n: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for n, p in parameters.items()}
    number = 0
    with preserved(model), torch.enable_grad():
        model.eval()
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        if hasattr(data, "set_epoch"):
            data.set_epoch(0)  # the same batches each time, also where a run was resumed
        for batch in itertools.islice(data, num_batches):
            number += 1
            value = _loss_of(model, batch, loss, number)
            grads = torch.autograd.grad(value, [*parameters.values()], allow_unused=True)
            for total, grad in zip(sums.values(), grads, strict=True):
                if grad is not None:
                    total += grad
    if not number:
        raise InputError("the data yielded no batch; is the loader empty, or an iterator that is used up?")
    return {name: total.detach() / number for name, total in sums.items()}


def _loss_of(model: nn.Module, batch: Any, loss: Callable[[Any, Any], Tensor], number: int) -> Tensor:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    inputs, targets = tree_map_only(Tensor, lambda t: t.to(device), as_batch(batch))
    value = loss(call(model, inputs), targets)
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        raise InputError(f"the loss must be one number that depends on the model's parameters, got {value!r}")
    if not torch.isfinite(value):
        raise InputError(f"the loss of batch {number} is {value.item()}; look at the data and at the model's weights")
    return value.reshape(())
