"""One-cycle: a long start, a steep middle, a long end; for pruning during one single training."""

from __future__ import annotations

import math
from dataclasses import dataclass

from topiarist.errors import InputError
from topiarist.schedule.progress import check


@dataclass(frozen=True)
class OneCycle:
    """s(t) = s_f · (1 + e^(β − α)) / (1 + e^(β − αt)) (One-Cycle Pruning, Hubens et al. 2021), and 0 at t = 0.

    A logistic curve, scaled to end at s_f: the slope grows with α, the middle lies at t = β / α. As published it
    begins a little above 0, at 0.0025 s_f with the defaults; at no progress at all nothing goes here.

    Raises:
        InputError: α or β is not finite, or α not above 0; when called, progress or final fraction outside [0, 1].

    Example:
        >>> [round(OneCycle()(step / 4, 0.9), 4) for step in range(5)]
        [0.0, 0.0683, 0.6582, 0.8904, 0.9]
    """

    alpha: float = 14.0
    beta: float = 6.0

    def __post_init__(self) -> None:
        if not (0 < self.alpha < math.inf and math.isfinite(self.beta)):
            raise InputError(
                f"one-cycle needs alpha above 0 and finite numbers, got alpha={self.alpha}, beta={self.beta}"
            )

    def __call__(self, progress: float, final: float) -> float:
        """The fraction removed at ``progress``."""
        check(progress, final)
        if progress in (0, 1):
            return final * progress
        part = (1 + math.exp(self.beta - self.alpha)) / (1 + math.exp(self.beta - self.alpha * progress))
        return final * min(part, 1.0)  # rounding may exceed it by a bit
