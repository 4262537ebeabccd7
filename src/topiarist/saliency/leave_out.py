"""Leave out: the change of the loss without a unit, measured and not estimated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from topiarist.saliency.base import Slices


@dataclass(frozen=True)
class LeaveOut:
    """The loss without the unit minus the loss with it: s_j = L(w with unit j zero) − L(w), mean over batches.

    The oracle of Molchanov et al. 2017, with the sign: a unit whose absence lowers the loss goes first. With
    ``magnitude`` it is |ΔL|, as there. One forward pass a unit and batch: for small sets of units and little data.

    Example:
        >>> import torch
        >>> from topiarist.plan import Units
        >>> LeaveOut()(Slices(Units("fc", 2, ()), (), {"loss changes": torch.tensor([0.3, -0.1]).double()}))
        tensor([ 0.3000, -0.1000], dtype=torch.float64)
    """

    magnitude: bool = False
    needs: ClassVar[frozenset[str]] = frozenset({"loss changes"})
    is_comparable: ClassVar[bool] = True

    def __call__(self, slices: Slices) -> Tensor:
        changes: Tensor = slices.stats["loss changes"]
        return changes.abs() if self.magnitude else changes.clone()
