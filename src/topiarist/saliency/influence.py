"""Block influence: a block that hardly turns what runs through it can be left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from topiarist.saliency.base import Slices
from topiarist.stats import Need
from topiarist.stats.influence import Influence


@dataclass(frozen=True)
class BlockInfluence:
    """Block influence (ShortGPT, Men et al. 2024, arXiv:2403.03853): s_i = 1 − E cos(x_i, x_{i+1}).

    x_i is what goes into module i, token by token, and x_{i+1} what comes out. For units that are modules, as those of
    ``structure="layer"`` are; all are scored on the whole model, and the lowest go at once. Blocks of different classes
    compare as they are.

    Example:
        >>> import torch
        >>> from topiarist.plan import Units
        >>> BlockInfluence()(Slices(Units("Block", 2, ()), (), {Influence: torch.tensor([0.25, 0.5])}))
        tensor([0.2500, 0.5000])
    """

    needs: ClassVar[frozenset[Need]] = frozenset({Influence})
    is_comparable: ClassVar[bool] = True

    def __call__(self, slices: Slices) -> Tensor:
        turned: Tensor = slices.stats[Influence]
        return turned
