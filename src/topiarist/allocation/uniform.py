"""Uniform (layerwise): the same fraction of every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from topiarist.allocation.base import Candidates, check_level, share


@dataclass(frozen=True)
class Uniform:
    """Remove the same fraction of every set of units: k_l = ⌊level · n_l + ½⌋ of the lowest scores of each.

    The layerwise baseline of Blalock et al. 2020 (ShrinkBench's ``LayerMag…``), with exact k.

    Example:
        >>> import torch
        >>> from topiarist.plan import Units
        >>> units = (Units("a", 2, ()), Units("b", 4, ()))
        >>> scores = {"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([9.0, 8.0, 7.0, 6.0])}
        >>> {k: v.tolist() for k, v in Uniform()(Candidates(units, scores), 0.5).items()}
        {'a': [False, True], 'b': [False, False, True, True]}
    """

    needs_scores: ClassVar[bool] = False
    needs_budget: ClassVar[bool] = True

    def __call__(self, candidates: Candidates, level: float) -> dict[str, Tensor]:
        check_level(level)
        return {u.name: candidates.lowest(u, share(level, u.num)) for u in candidates.units}
