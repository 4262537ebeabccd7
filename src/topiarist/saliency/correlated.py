"""Correlated activations: a unit that is nearly an affine function of another one can be computed from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from topiarist.errors import InputError, nearest
from topiarist.saliency.absorb import Absorbing, StandIn
from topiarist.saliency.base import Slices
from topiarist.saliency.pairs import Merge, pair_off
from topiarist.saliency.sides import consuming
from topiarist.stats import Need
from topiarist.stats.consumers import Consumers
from topiarist.stats.unit_inputs import Covariance, UnitCovariance

_RANKINGS = ("correlation", "error")
_NEED = UnitCovariance()


@dataclass(frozen=True)
class Correlated(Absorbing):
    """NoiseOut's pairs (Babaeizadeh, Smaragdis, Campbell 2016, arXiv:1611.06211): s_u = 1 − max_{v left} ρ_uv².

    Units go one after the other; with each, z_u ≈ α z_v + β, α = cov(u, v)/var(v), β = E z_u − α E z_v, and
    `topiarist.prune` lets its partner take over: w_kv += α w_ku, b_k += β w_ku in every consumer k. ``rank="error"``
    goes by what that costs, which is exact over the data: s_u = min_v ‖w_u‖² var(u) (1 − ρ_uv²) = E‖Δ‖², the change of
    what all consumers compute. A unit that never changes goes first, and leaves only its constant. Where a consumer
    has no bias to take a constant, β is 0 and means are not subtracted: ρ_uv = E z_u z_v / √(E z_u² E z_v²).

    Of two partners the one whose loss costs less goes.

    Raises:
        InputError: no such ranking.
    """

    rank: str = "correlation"
    needs: ClassVar[frozenset[Need]] = frozenset({_NEED, Consumers})

    def __post_init__(self) -> None:
        if self.rank not in _RANKINGS:
            raise InputError(f"units are ranked by {' or '.join(_RANKINGS)}, got {self.rank!r} "
                             f"({nearest(self.rank, _RANKINGS)})")  # fmt: skip

    def merges(self, slices: Slices, among: Sequence[bool] | None = None) -> tuple[list[Merge], StandIn]:
        """The best explained unit first."""
        seen: Covariance = slices.stats[_NEED]
        shifts = slices.stats[Consumers].constants
        mean = seen.mean if shifts else torch.zeros_like(seen.mean)
        second = seen.covariance if shifts else seen.covariance + torch.outer(seen.mean, seen.mean)
        power, outgoing = second.diagonal(), consuming(slices).clone()
        both = torch.outer(power, power)
        explained = torch.where(
            both > 0, (second * second.mT) / both, 0.0
        )  # ρ², the same from both sides to the last bit
        unexplained = torch.where(power[:, None] > 0, 1 - explained, 0.0).clamp(min=0.0)

        def stand_in(merge: Merge) -> tuple[float, float]:
            u, v = merge.gone, merge.kept
            alpha = float(second[u, v] / power[v]) if v is not None and power[v] > 0 else 0.0
            return alpha, float(mean[u]) - (alpha * float(mean[v]) if v is not None else 0.0)

        def merged(u: int, v: int) -> float:
            outgoing[v] += stand_in(Merge(u, v, 0.0))[0] * outgoing[u]
            return float(outgoing[v].square().sum() * power[v])

        error = (outgoing.square().sum(1) if outgoing.shape[1] else 1.0) * power
        if self.rank == "error":
            return pair_off(unexplained, error, power, merged, among), stand_in
        return pair_off(unexplained, torch.ones_like(power), error, None, among), stand_in
