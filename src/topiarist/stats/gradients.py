"""The mean gradient of the loss over data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from torch import Tensor, nn

from topiarist.errors import InputError
from topiarist.stats.collect import collect
from topiarist.stats.statistic import Batch, Loss, PerParameter, Subject


class Gradients(PerParameter):
    """The mean over batches of ∂ loss / ∂ w; zeros where the loss does not reach."""

    is_linear: ClassVar[bool] = True

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._number = 0

    def on_batch(self, batch: Batch) -> None:
        """Add the gradients of a batch."""
        for name, gradient in batch.gradients.items():
            self.values[name] += gradient
        self._number = batch.number

    def end(self, turn: int) -> None:
        """From sums to means."""
        for total in self.values.values():
            total /= self._number


def collect_gradients(
    model: nn.Module,
    data: Iterable[Any],
    loss: Loss,
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
        >>> import torch
        >>> model = nn.Linear(1, 1, bias=False)
        >>> data = [(torch.tensor([[2.0]]), None), (torch.tensor([[4.0]]), None)]
        >>> collect_gradients(model, data, lambda outputs, targets: outputs.sum())
        {'weight': tensor([[3.]])}
    """
    if num_batches is not None and num_batches < 1:
        raise InputError(f"asked for gradients over {num_batches} batches, try 1 or more, or None for all")
    subject = Subject(model)
    gradients = Gradients(subject)
    collect([gradients], subject, data, loss, num_batches)
    return gradients.values
