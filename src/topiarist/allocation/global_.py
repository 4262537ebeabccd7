"""Global: one ranking of all units of all layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topiarist.allocation.base import Candidates, check_level, share
from topiarist.errors import InputError, nearest

_NORMALIZATIONS = ("auto", "none", "mean")


@dataclass(frozen=True)
class Global:
    """Remove the lowest k = ⌊level · N + ½⌋ of all N units in one ranking, keeping each `Units.minimum`.

    Layers get different fractions, as their scores deserve (Blalock et al. 2020, ShrinkBench's ``GlobalMag…``).
    Norms of whole channels grow with the channel's extent, so that narrow layers would go first: ``normalize="mean"``
    divides each score by the mean magnitude of the scores of its set (Fang et al. 2023, DepGraph), gone units left
    out; ``"none"`` compares them as they are; ``"auto"`` is ``"none"`` where all units are single weights, and
    ``"mean"`` otherwise.

    Raises:
        InputError: ``normalize`` is none of these.

    Example:
        >>> from topiarist.plan import Units
        >>> units = (Units("a", 2, ()), Units("b", 2, ()))
        >>> candidates = Candidates(units, {"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([10.0, 10.0])})
        >>> {k: v.tolist() for k, v in Global("none")(candidates, 0.5).items()}
        {'a': [True, True], 'b': [False, False]}
        >>> {k: v.tolist() for k, v in Global("mean")(candidates, 0.5).items()}
        {'a': [True, False], 'b': [True, False]}
    """

    normalize: str = "auto"
    needs_budget: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.normalize not in _NORMALIZATIONS:
            raise InputError(f"no normalization {self.normalize!r} ({nearest(self.normalize, _NORMALIZATIONS)})")

    def __call__(self, candidates: Candidates, level: float) -> dict[str, Tensor]:
        check_level(level)
        return candidates.lowest_of_all(share(level, candidates.num_units), self._comparable(candidates))

    def _comparable(self, candidates: Candidates) -> dict[str, Tensor]:
        single = all(m.dim is None and m.unit is None for units in candidates.units for m in units.members)
        if self.normalize == "none" or (self.normalize == "auto" and single):
            return {units.name: candidates.scores[units.name] for units in candidates.units}
        return {units.name: _over_mean(candidates, units.name) for units in candidates.units}


def _over_mean(candidates: Candidates, name: str) -> Tensor:
    scores = candidates.scores[name]
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    left = scores[~candidates.gone[name]] if name in candidates.gone else scores
    mean = left.abs().mean() if left.numel() else scores.new_zeros(())
    return scores / mean if mean > 0 else scores
