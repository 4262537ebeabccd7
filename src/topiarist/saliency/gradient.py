"""Gradient: the loss changes least without weights of small |w · g|."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topiarist.saliency.base import Slices


@dataclass(frozen=True)
class Gradient:
    """The first-order change of the loss, summed in magnitude: s_j = Σ_m Σ_i |w^m_ji · g^m_ji|, g the mean gradient.

    The first-order Taylor expansion of the loss at w = 0, entry by entry; for single weights it is the
    ``…MagGrad`` of Blalock et al. 2020. Sums run in double precision; a unit without weights scores 0.

    Example:
        >>> from topiarist.plan import Units
        >>> weights, gradients = torch.tensor([[3.0, 1.0], [2.0, 2.0]]), torch.tensor([[-1.0, 1.0], [0.0, 0.5]])
        >>> Gradient()(Slices(Units("fc", 2, ()), (weights,), {"gradients": (gradients,)}))
        tensor([4., 1.], dtype=torch.float64)
    """

    needs: ClassVar[frozenset[str]] = frozenset({"gradients"})
    is_comparable: ClassVar[bool] = True

    def __call__(self, slices: Slices) -> Tensor:
        if len(slices.weights) == 1 and slices.weights[0].shape[1] == 1:
            return _change(slices.weights[0], slices.gradients[0], torch.float32).flatten()
        total = torch.zeros(slices.units.num, dtype=torch.float64)
        for weight, gradient in zip(slices.weights, slices.gradients, strict=True):
            change = _change(weight, gradient, torch.float64).sum(dim=1)
            total = total.to(change.device) + change
        return total


def _change(weight: Tensor, gradient: Tensor, at_least: torch.dtype) -> Tensor:
    dtype = torch.promote_types(weight.dtype, at_least)
    return (weight.detach().to(dtype) * gradient.detach().to(dtype)).abs()
