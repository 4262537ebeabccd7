"""GraSP: weights whose removal would take gradient away stay."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from topiarist.saliency.base import Slices
from topiarist.stats.curvature import HessianGradient


@dataclass(frozen=True)
class GraSP:
    """Minus half the first-order change of ‖g‖² when the unit goes: s_j = Σ_m Σ_i θ^m_ji (Hg)^m_ji.

    Wang, Zhang, Grosse 2020: removing θ_q changes the squared norm of the loss's gradient by 2 S_q with
    S = −θ ⊙ Hg; the largest S go first. So the lowest θ ⊙ Hg do. g and H are those of the loss with outputs divided by
    ``temperature``, over the weights that units live in. The published code runs batch norms in training mode and
    draws the classifier anew for scoring; here the model is scored as it is, in evaluation mode.

    Example:
        >>> from topiarist.plan import Units
        >>> stats = {need: (torch.tensor([[0.5], [1.0]]),) for need in GraSP().needs}
        >>> GraSP()(Slices(Units("fc", 2, ()), (torch.tensor([[2.0], [-1.0]]),), stats))
        tensor([ 1., -1.], dtype=torch.float64)
    """

    is_comparable: ClassVar[bool] = True

    temperature: float = 200.0

    @cached_property
    def needs(self) -> frozenset[HessianGradient]:
        """The product of Hessian and gradient."""
        return frozenset({HessianGradient(self.temperature)})

    def __call__(self, slices: Slices) -> Tensor:
        (need,) = self.needs
        total = torch.zeros(slices.units.num, dtype=torch.float64)
        for weight, product in zip(slices.weights, slices.stats[need] if slices.weights else (), strict=True):
            total = total.to(weight.device) + (weight.double() * product.double()).sum(1)
        return total
