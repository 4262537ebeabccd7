"""Batch-norm scale: a channel that its norm scales by next to nothing says next to nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topiarist.saliency.base import Slices


@dataclass(frozen=True)
class Scale:
    """The mean magnitude of a unit's scales: s_j = mean |γ^m_ji| over the scales m of its axis and their entries i.

    Network Slimming (Liu et al. 2017), where each channel has one scale; here also for axes with several (the stream
    of a residual network), for layer, group and RMS norms, and for vectors that a model multiplies by itself. Scales
    are found by operator in the trace, whatever the class of the layer. Train with an L1 penalty on them first: without
    one they say little.

    Raises:
        InputError: nothing scales some units.

    Example:
        >>> from topiarist.plan import Units
        >>> Scale()(Slices(Units("bn", 2, ()), (), {"scales": (torch.tensor([[-0.5], [0.1]]),)}))
        tensor([0.5000, 0.1000], dtype=torch.float64)
    """

    needs: ClassVar[frozenset[str]] = frozenset({"scales"})
    is_comparable: ClassVar[bool] = True

    def __call__(self, slices: Slices) -> Tensor:
        scales = slices.stats["scales"]
        if not scales:
            return torch.zeros(slices.units.num, dtype=torch.float64)
        return torch.cat([s.double().abs() for s in scales], dim=1).mean(1)
