"""ThiNet: the units whose contributions to the next layer cancel, or are small, go first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topiarist.saliency.base import Slices
from topiarist.saliency.pairs import in_order
from topiarist.stats import Need, Statistics
from topiarist.stats.consumers import Consumers
from topiarist.stats.contributions import Contributions


@dataclass(frozen=True)
class ThiNet:
    """Greedy reconstruction (Luo, Wu, Lin 2017, arXiv:1707.06342): let the unit go that keeps E‖Σ_{u ∈ T} x̂_u‖² lowest.

    x̂_u is what unit u adds to the outputs of its consumers; the cost of a set is 1ᵀ G_TT 1 with G of
    `topiarist.stats.contributions`, over all data and all outputs where the paper samples, and grows by
    G_uu + 2 Σ_{v ∈ T} G_uv. The score of a unit is the cost with it, in the order in which they go. After a cut
    `topiarist.prune` scales what each unit that is left gives its consumers by least squares, G_SS ŵ = G_S: 1, the
    paper's second step.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Contributions, Consumers})

    def __call__(self, slices: Slices) -> Tensor:
        gram: Tensor = slices.stats[Contributions]
        order, costs = greedy(gram)
        return in_order(order, costs)

    def compensate(
        self, weights: Mapping[str, Tensor], removed: Mapping[str, Tensor], stats: Statistics
    ) -> Mapping[str, Tensor]:
        """The consumers' weights, each unit's scaled so that the outputs change least."""
        consumers, changed = stats[Consumers], dict(weights)
        assert isinstance(consumers, Consumers)  # noqa: S101 what `needs` starts
        for units in consumers.units:
            gone = consumers.gone(units, removed)
            if bool(gone.any()) and consumers.of(units).weights:
                consumers.scale(changed, units, scales(stats[Contributions].of(units), gone))
        return {name: value for name, value in changed.items() if value is not weights[name]}


def greedy(gram: Tensor) -> tuple[list[int], list[float]]:
    """The order in which units go, and the cost 1ᵀ G_TT 1 of those gone with each.

    Example:
        >>> greedy(torch.tensor([[4.0, -4.0, 0.0], [-4.0, 4.0, 0.0], [0.0, 0.0, 5.0]]))
        ([0, 1, 2], [4.0, 0.0, 5.0])
    """
    rising, total = gram.double().diagonal().clone(), 0.0
    order, costs = [], []
    for _ in range(len(gram)):
        unit = int(rising.argmin())
        total += float(rising[unit])
        order.append(unit)
        costs.append(total)
        rising += 2 * gram[:, unit]
        rising[unit] = torch.inf
    return order, costs


def scales(gram: Tensor, gone: Tensor) -> Tensor:
    """What each unit's contribution is multiplied by: argmin E‖Σ_u x̂_u − Σ_{u left} s_u x̂_u‖², 0 for those gone.

    Example:
        >>> scales(torch.ones(2, 2), torch.tensor([True, False]))
        tensor([0., 2.], dtype=torch.float64)
    """
    left = (~gone).nonzero().flatten()
    found = torch.zeros(len(gram), dtype=torch.float64)
    target = gram.double().sum(1)[left]
    found[left] = torch.linalg.lstsq(gram.double()[left][:, left], target[:, None], driver="gelsd").solution[:, 0]
    return found
