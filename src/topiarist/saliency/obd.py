"""Optimal Brain Damage: at a minimum the loss rises least without weights of small h w²."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from topiarist.saliency.base import Slices
from topiarist.saliency.fisher import quadratic
from topiarist.stats.diagonal import HessianDiagonal


@dataclass(frozen=True)
class OBD:
    """The second-order change of the loss with a diagonal Hessian: s_j = ½ Σ_m Σ_i h^m_ji (w^m_ji)².

    LeCun, Denker, Solla 1990. ``curvature`` is ``"gauss-newton"`` (exact, as many backward passes as outputs),
    ``"hutchinson"`` (``num_probes`` double backward passes a batch) or ``"auto"``; see
    `topiarist.stats.diagonal.HessianDiagonal`. Shared weights, as in convolutions, are differentiated together and not
    position by position. Train to a minimum first: the gradient's part of the change is left out.

    Raises:
        InputError: ``curvature`` is another word.

    Example:
        >>> from topiarist.plan import Units
        >>> stats = {need: (torch.tensor([[2.0], [2.0]]),) for need in OBD().needs}
        >>> OBD()(Slices(Units("fc", 2, ()), (torch.tensor([[1.0], [2.0]]),), stats))
        tensor([1., 4.], dtype=torch.float64)
    """

    is_comparable: ClassVar[bool] = True

    curvature: str = "auto"
    num_probes: int = 8

    def __post_init__(self) -> None:
        HessianDiagonal(self.curvature, self.num_probes)

    @cached_property
    def needs(self) -> frozenset[HessianDiagonal]:
        """The diagonal of the Hessian."""
        return frozenset({HessianDiagonal(self.curvature, self.num_probes)})

    def __call__(self, slices: Slices) -> Tensor:
        if not slices.weights:
            return torch.zeros(slices.units.num, dtype=torch.float64)
        (need,) = self.needs
        return quadratic(slices, slices.stats[need])
