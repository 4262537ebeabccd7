"""Random: the straw man that every criterion has to beat."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topiarist.saliency.base import Slices


@dataclass(frozen=True)
class Random:
    """Uniform random scores in [0, 1), a pure function of the seed and the units' name.

    The random baseline of Blalock et al. 2020, with exact k instead of independent draws. Neither reads nor changes
    the global random state.

    Example:
        >>> from topiarist.plan import Units
        >>> slices = Slices(Units("fc", 3, ()), (torch.zeros(3, 1),))
        >>> torch.equal(Random(seed=1)(slices), Random(seed=1)(slices))
        True
    """

    seed: int = 0
    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, slices: Slices) -> Tensor:
        digest = hashlib.sha256(f"{self.seed}:{slices.units.name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        scores = torch.rand(slices.units.num, generator=generator)
        if not slices.weights or slices.weights[0].is_meta:  # scores have values also where weights have none
            return scores
        return scores.to(slices.weights[0].device)
