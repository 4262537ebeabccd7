"""The Hessian times the gradient, in two passes over data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from topiarist.errors import InputError
from topiarist.stats.statistic import Batch, PerParameter, Subject


@dataclass(frozen=True)
class HessianGradient:
    """Starts the statistic H g: the Hessian of the mean loss over the weights that units live in, times its gradient.

    ``temperature`` divides the outputs first. The first pass takes the mean gradient g, the second ∂(gᵀ∂L/∂w)/∂w.
    """

    temperature: float = 200.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError(f"a temperature is positive, got {self.temperature!r}")

    def __call__(self, subject: Subject) -> PerParameter:
        """Nothing is collected yet."""
        return _HessianGradient(subject, self.temperature)


class _HessianGradient(PerParameter):
    num_passes = 2
    keeps_graph = True

    def __init__(self, subject: Subject, temperature: float) -> None:
        held = {member.tensor for units in subject.units for member in units.members}
        self.leaves = {name: p for name, p in subject.parameters.items() if name in held}
        self.gradient = {name: zero for name, zero in subject.zeros().items() if name in held}
        self.values = {name: torch.zeros_like(zero) for name, zero in self.gradient.items()}
        self.temperature = temperature
        self._number = 0

    def on_batch(self, batch: Batch) -> None:
        """Add to the mean gradient, and in the second pass to H g."""
        assert batch.loss_function is not None  # noqa: S101 it reads the loss
        cooled = batch.outputs
        if self.temperature != 1:
            cooled = tree_map_only(Tensor, lambda t: t / self.temperature if t.is_floating_point() else t, cooled)
        loss = batch.loss_function(cooled, batch.targets)
        leaves, second = [*self.leaves.values()], batch.turn == 1
        found = torch.autograd.grad(loss, leaves, allow_unused=True, retain_graph=True, create_graph=second)
        if second:
            product = torch.zeros((), device=loss.device, dtype=loss.dtype)
            for gradient, mean in zip(found, self.gradient.values(), strict=True):
                if gradient is not None and gradient.requires_grad:
                    product = product + (gradient * mean.to(gradient.dtype)).sum()
            if not product.requires_grad:  # the loss is linear in the weights
                return
            found = torch.autograd.grad(product, leaves, allow_unused=True, retain_graph=True)
        for total, part in zip((self.values if second else self.gradient).values(), found, strict=True):
            if part is not None:
                total += part
        self._number = batch.number

    def end(self, turn: int) -> None:
        """From sums to means."""
        for total in (self.gradient if turn == 0 else self.values).values():
            total /= max(1, self._number)
