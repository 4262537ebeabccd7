"""APoZ: a unit that is zero for nearly every input is nearly not there."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from topiarist.errors import InputError
from topiarist.saliency.base import Slices
from topiarist.stats import Need
from topiarist.stats.unit_inputs import Activations, UnitMoments


@dataclass(frozen=True)
class APoZ:
    """One minus the average percentage of zeros (Hu et al. 2016, "Network Trimming"): s_j = E[ |z_j| > threshold ].

    z_j is what the consumers of unit j are multiplied by, over samples, positions and features. With ``threshold`` 0
    it counts exact zeros, which only rectifiers make; GELU and SiLU need a threshold above 0.

    Raises:
        InputError: the threshold is negative or not finite.

    Example:
        >>> import torch
        >>> from topiarist.plan import Units
        >>> seen = Activations(*torch.zeros(3, 2), zeros=torch.tensor([1.0, 0.25]))
        >>> APoZ()(Slices(Units("fc", 2, ()), (), {UnitMoments(): seen}))
        tensor([0.0000, 0.7500])
    """

    threshold: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold < float("inf"):
            raise InputError(f"the threshold of APoZ is a magnitude, 0 or more, got {self.threshold!r}")

    @property
    def needs(self) -> frozenset[Need]:
        """The share of zeros of each unit's activation."""
        return frozenset({UnitMoments(self.threshold)})

    def __call__(self, slices: Slices) -> Tensor:
        seen: Activations = slices.stats[UnitMoments(self.threshold)]
        return 1 - seen.zeros
