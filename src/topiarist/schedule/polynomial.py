"""Polynomial schedules: fast at first, slower as less is left; cubic is the one of AGP."""

from __future__ import annotations

import math
from dataclasses import dataclass

from topiarist.errors import InputError
from topiarist.schedule.progress import check


@dataclass(frozen=True)
class Polynomial:
    """s(t) = s_f · (1 − (1 − t)^power), the "polynomial decay" of what remains (Zhu & Gupta 2017, for power 3).

    ``power`` 1 is linear; the larger it is, the more goes early. For a start at s_i or a window of the training, see
    `Window`.

    Raises:
        InputError: the power is not finite and above 0; when called, progress or the final fraction outside [0, 1].

    Example:
        >>> [round(Polynomial(power=2)(step / 4, 0.8), 4) for step in range(5)]
        [0.0, 0.35, 0.6, 0.75, 0.8]
    """

    power: float = 3.0

    def __post_init__(self) -> None:
        if not (self.power > 0 and math.isfinite(self.power)):
            raise InputError(
                f"the power of a polynomial schedule must be finite and above 0, got {self.power!r}; try 3"
            )

    def __call__(self, progress: float, final: float) -> float:
        """The fraction removed at ``progress``."""
        check(progress, final)
        return final * (1 - math.pow(1 - progress, self.power))


def cubic(progress: float, final: float) -> float:
    """Fast at first, slower as less is left: s(t) = s_f · (1 − (1 − t)³) (AGP; Zhu & Gupta 2017, from 0).

    Raises:
        InputError: ``progress`` or ``final`` lies outside [0, 1].

    Example:
        >>> [round(cubic(step / 10, 0.9), 4) for step in (0, 1, 5, 10)]
        [0.0, 0.2439, 0.7875, 0.9]
    """
    return Polynomial(3)(progress, final)
