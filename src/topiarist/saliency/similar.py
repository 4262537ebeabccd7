"""Similar neurons: of two that see their inputs alike one is enough, if it takes over what the other one says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topiarist.saliency.absorb import Absorbing, StandIn
from topiarist.saliency.base import Slices
from topiarist.saliency.fpgm import apart
from topiarist.saliency.pairs import Merge, pair_off
from topiarist.saliency.sides import consuming, making
from topiarist.stats import Need
from topiarist.stats.consumers import Consumers


@dataclass(frozen=True)
class Similar(Absorbing):
    """Data-free merging (Srinivas & Babu 2015, arXiv:1507.06149): s_j = min_{i left} ⟨a_j²⟩ · ‖w_i − w_j‖².

    w_j is all that makes unit j, biases included, and ⟨a_j²⟩ the mean square of the weights that consume it. Units go
    one after the other; with each, `topiarist.prune` lets its twin i take over its consumers, a_i ← a_i + a_j, which
    is exact for duplicates. With ``normalize`` directions are compared, w_j / ‖w_j‖, and a_i ← a_i + ‖w_j‖/‖w_i‖ · a_j:
    after a rectifier that is exact for scaled duplicates as well. It needs no data. With a norm between the units and
    their consumers use ``normalize=False``.

    Example:
        >>> from topiarist.plan import Member, Units
        >>> members = (Member("1", 0, torch.arange(3), "out"), Member("2", 1, torch.arange(3), "in"))
        >>> incoming, outgoing = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]), torch.ones(3, 1)
        >>> Similar()(Slices(Units("fc", 3, members), (incoming, outgoing)))
        tensor([0.0000, 2.0000, 2.0000], dtype=torch.float64)
    """

    normalize: bool = True
    needs: ClassVar[frozenset[Need]] = frozenset({Consumers})

    def merges(self, slices: Slices, among: Sequence[bool] | None = None) -> tuple[list[Merge], StandIn]:
        """The cheapest merge first; outgoing weights grow as units take over others."""
        incoming, outgoing = making(slices, biases=True), consuming(slices).clone()
        norms = torch.linalg.vector_norm(incoming, dim=1)
        scale = norms if self.normalize else torch.ones_like(norms)
        rows = torch.where(scale[:, None] > 0, incoming / scale[:, None], 0.0)

        def ratio(gone: int, kept: int | None) -> float:
            return float(scale[gone] / scale[kept]) if kept is not None and scale[kept] > 0 else 0.0

        def merged(gone: int, kept: int) -> float:
            outgoing[kept] += ratio(gone, kept) * outgoing[gone]
            return float(scale[kept] ** 2 * _mean_square(outgoing[kept]))

        distance, matters = apart(rows, "l2").square(), scale.square() * _mean_square(outgoing)
        made = pair_off(distance, matters, norms, merged, among)
        return made, lambda merge: (ratio(merge.gone, merge.kept), 0.0)


def _mean_square(outgoing: Tensor) -> Tensor:
    """⟨a²⟩ over consumers; 1 where nothing consumes."""
    return outgoing.square().mean(-1) if outgoing.shape[-1] else outgoing.new_ones(outgoing.shape[:-1])
