"""HRank: maps of low rank carry little, whatever the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from topiarist.saliency.base import Slices
from topiarist.stats import Need
from topiarist.stats.map_ranks import MapRanks


@dataclass(frozen=True)
class HRank:
    """The average rank of a unit's feature maps (Lin et al. 2020, arXiv:2002.10179): s_j = E rank(z_j).

    z_j is the map (height, width) that convolutions read, after norms and nonlinearities; where none does, as before
    pooling and the classifier, the one that a convolution makes, before them. Few images are enough, as ranks hardly
    depend on them.

    Example:
        >>> import torch
        >>> from topiarist.plan import Units
        >>> HRank()(Slices(Units("conv", 2, ()), (), {MapRanks: torch.tensor([3.5, 8.0])}))
        tensor([3.5000, 8.0000])
    """

    needs: ClassVar[frozenset[Need]] = frozenset({MapRanks})

    def __call__(self, slices: Slices) -> Tensor:
        ranks: Tensor = slices.stats[MapRanks]
        return ranks
