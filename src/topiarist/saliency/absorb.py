"""What criteria share that let one unit stand in for another: the order of scores, and consumers that absorb."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from topiarist.saliency.base import Slices, needs
from topiarist.saliency.pairs import Merge, in_order
from topiarist.stats import Statistics
from topiarist.stats.consumers import Consumers
from topiarist.stats.cut import rows_of

StandIn = Callable[[Merge], tuple[float, float]]  # (scale, constant): z_gone ≈ scale · z_kept + constant


@dataclass(frozen=True)
class Absorbing:
    """A criterion that says which unit goes after which, and what stands in for it."""

    def merges(self, slices: Slices, among: Sequence[bool] | None = None) -> tuple[list[Merge], StandIn]:
        """The units that go, one after the other, and what stands in for each; ``among`` says which may."""
        raise NotImplementedError

    def __call__(self, slices: Slices) -> Tensor:
        if not slices.weights:
            return torch.zeros(slices.units.num, dtype=torch.float64)
        merges, _ = self.merges(slices)
        return in_order([m.gone for m in merges], [m.cost for m in merges]).to(slices.weights[0].device)

    def compensate(
        self, weights: Mapping[str, Tensor], removed: Mapping[str, Tensor], stats: Statistics
    ) -> Mapping[str, Tensor]:
        """The consumers' weights and biases, with what removed units said moved to those that stand in for them."""
        consumers, changed = stats[Consumers], dict(weights)
        assert isinstance(consumers, Consumers)  # noqa: S101 what `needs` starts
        for units in consumers.units:
            gone = consumers.gone(units, removed)
            if not bool(gone.any()) or not consumers.of(units).weights:
                continue
            there = replace(units, members=tuple(m for m in units.members if m.tensor in changed))
            seen = {need: stats[need].of(units) for need in needs(self)}
            merges, stand_in = self.merges(Slices(there, rows_of(there, changed), seen), gone.tolist())
            for merge in merges:
                consumers.absorb(changed, units, merge.gone, merge.kept, *stand_in(merge))
        return {name: value for name, value in changed.items() if value is not weights[name]}
