"""Uniform+: the same fraction of every layer, but the first convolution stays dense and the last layer nearly so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from topiarist.allocation.base import Candidates
from topiarist.allocation.density import clipped, remove_to
from topiarist.plan import Units

_NUM_DIMS_OF_CONVOLUTION = 3  # output, input, and a kernel of one dimension or more


@dataclass(frozen=True)
class UniformPlus:
    """Give every layer the same density, the first convolution 1, and the last layer no less than ``last``.

    What these two keep the others lose, so that the level is met (Gale et al. 2019: 0.2 of the last layer stays). The
    order is that of the units, which is the order in which layers run. A network without convolutions has no first
    one, and a network of one layer no last one. Beyond the level at which all other layers are empty nothing more goes.

    Example:
        >>> import torch
        >>> from topiarist.plan import Units
        >>> weights = {"conv": torch.rand(2, 1, 3, 3), "fc1": torch.rand(20, 10), "fc2": torch.rand(5, 20)}
        >>> units = tuple(Units(name, w.numel(), ()) for name, w in weights.items())
        >>> scores = {name: w.flatten() for name, w in weights.items()}
        >>> removed = UniformPlus()(Candidates(units, scores, weights.__getitem__), 0.8)
        >>> {name: int(r.sum()) for name, r in removed.items()}
        {'conv': 0, 'fc1': 174, 'fc2': 80}
    """

    last: float = 0.2
    needs_budget: ClassVar[bool] = True

    def __call__(self, candidates: Candidates, level: float) -> dict[str, Tensor]:
        least = self._least(candidates)
        return remove_to(candidates, level, lambda t: {name: clipped(t, low) for name, low in least.items()}, 0.0, 1.0)

    def _least(self, candidates: Candidates) -> dict[str, float]:
        """How much of each layer stays at least."""
        least = {units.name: 0.0 for units in candidates.units}
        if len(least) > 1:
            least[candidates.units[-1].name] = self.last
        first = next((u.name for u in candidates.units if _is_convolution(candidates, u)), None)
        return least if first is None else {**least, first: 1.0}


def _is_convolution(candidates: Candidates, units: Units) -> bool:
    return candidates.weight(units.name).ndim >= _NUM_DIMS_OF_CONVOLUTION
