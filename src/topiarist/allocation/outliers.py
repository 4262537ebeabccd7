"""Outliers: the units of each layer that lie far below their own kind, so many standard deviations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topiarist.allocation.base import Candidates, check_level
from topiarist.errors import InputError
from topiarist.plan import Units


@dataclass(frozen=True)
class Outliers:
    """Remove of each set the units with s_j < mean − ``deviations`` · σ, mean and σ over those that are not gone.

    Network Trimming (Hu et al. 2016) takes 1 deviation of APoZ. σ is that of the population. How much goes is said by
    the scores, and no budget is taken; asked again it finds the outliers among those that are left.

    Raises:
        InputError: the number of deviations is not finite or negative.

    Example:
        >>> candidates = Candidates((Units("a", 4, ()),), {"a": torch.tensor([0.0, 1.0, 1.0, 1.0])})
        >>> Outliers()(candidates, 1.0)
        {'a': tensor([ True, False, False, False])}
    """

    deviations: float = 1.0
    needs_budget: ClassVar[bool] = False
    repeats: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0.0 <= self.deviations < float("inf"):
            raise InputError(f"deviations are 0 or more and finite, got {self.deviations!r}")

    def __call__(self, candidates: Candidates, level: float) -> dict[str, Tensor]:
        check_level(level)
        return {u.name: candidates.lowest(u, self._num(candidates, u, level)) for u in candidates.units}

    def _num(self, candidates: Candidates, units: Units, level: float) -> int:
        scores = candidates.scores[units.name].double()
        left = scores[~candidates.gone[units.name].to(scores.device)] if units.name in candidates.gone else scores
        if len(left) < 2:
            return units.num - len(left)
        least = left.mean() - self.deviations * left.std(correction=0)
        far = int((left < least - torch.finfo(torch.float32).eps * left.abs().max()).count_nonzero())  # not by rounding
        return units.num - len(left) + round(level * far)
