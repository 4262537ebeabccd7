"""Optimal Brain Surgeon: at a minimum the loss rises least without these units, once all other weights have adapted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from topiarist.saliency.base import Slices
from topiarist.stats import Need, Statistics
from topiarist.stats.hessian import Blocks, InverseHessian


@dataclass(frozen=True)
class OBS:
    """The second-order change of the loss with the best change of the other weights: s_j = ½ w_jᵀ [H⁻¹]_jj⁻¹ w_j.

    Hassibi & Stork 1993 (for a single weight w_q² / 2[H⁻¹]_qq), over all weights of a unit as in Kurtic et al. 2022.
    H is the damped Gauss–Newton matrix: whole for networks of at most ``whole`` parameters, by blocks of ``block``
    consecutive weights of a tensor for larger ones, where units of several weights count the diagonal of H⁻¹ only.
    What was removed before stays at zero. `topiarist.prune` applies the change of the other weights,
    δ_R = H_RR⁻¹ H_RQ w_Q for the removed Q, right after each cut; small steps serve a quadratic model best.

    Raises:
        InputError: ``damping`` is not positive.

    Example:
        >>> from topiarist.plan import Units
        >>> inverse = torch.tensor([2.0, 2.0]).double() / 3  # of [[2, 1], [1, 2]]
        >>> stats = {need: inverse[:, None, None] for need in OBS().needs}
        >>> OBS()(Slices(Units("fc", 2, ()), (torch.tensor([[1.0], [2.0]]),), stats))
        tensor([0.7500, 3.0000], dtype=torch.float64)
    """

    is_comparable: ClassVar[bool] = True

    damping: float = 0.01
    relative: bool = True
    whole: int = 5000
    block: int = 128

    def __post_init__(self) -> None:
        _ = self.needs

    @cached_property
    def needs(self) -> frozenset[InverseHessian]:
        """The inverse of the Hessian."""
        return frozenset({InverseHessian(self.damping, self.relative, self.whole, self.block)})

    def __call__(self, slices: Slices) -> Tensor:
        if not slices.weights:
            return torch.zeros(slices.units.num, dtype=torch.float64)
        (need,) = self.needs
        inverse: Tensor = slices.stats[need]
        weights = torch.cat([w.double() for w in slices.weights], dim=1)
        if inverse.ndim == 2:
            return (weights.square() / inverse).sum(1) / 2
        if inverse.shape[1] == 1:
            return weights[:, 0].square() / inverse[:, 0, 0] / 2
        pulled: Tensor = torch.linalg.solve(inverse, weights[:, :, None])[:, :, 0]
        return (weights * pulled).sum(1) / 2

    def compensate(
        self, weights: Mapping[str, Tensor], removed: Mapping[str, Tensor], stats: Statistics
    ) -> Mapping[str, Tensor]:
        """The change of the weights that stay, jointly for all that go."""
        need: Need
        (need,) = self.needs
        statistic = stats[need]
        assert isinstance(statistic, Blocks)  # noqa: S101 it is what the need starts
        return statistic.without(weights, removed)
