"""Constant fraction: every step removes the same share of what remains."""

from __future__ import annotations

import math
from dataclasses import dataclass

from topiarist.errors import InputError
from topiarist.schedule.progress import check

_CLOSE = 1e-9  # steps nearer than this to a whole number are that number


@dataclass(frozen=True)
class ConstantFraction:
    """Remove the fraction ``p`` of what remains at each step: after k steps (1 − p)^k is left (Frankle & Carbin 2019).

    How many steps that takes follows from the final fraction, `num_steps`; the last one stops at the final fraction
    itself. With progress k / num_steps the steps are those of the paper.

    Raises:
        InputError: p lies outside (0, 1); when called, a final fraction of 1, which no number of steps reaches.

    Example:
        >>> halving = ConstantFraction(p=0.5)
        >>> num_steps = halving.num_steps(0.8)
        >>> [halving(step / num_steps, 0.8) for step in range(num_steps + 1)]
        [0.0, 0.5, 0.75, 0.8]
    """

    p: float = 0.2

    def __post_init__(self) -> None:
        if not 0.0 < self.p < 1.0:
            raise InputError(f"the fraction removed at each step must lie in (0, 1), got {self.p!r}")

    def num_steps(self, final: float) -> int:
        """The fewest steps after which at least ``final`` is removed: ⌈log(1 − s_f) / log(1 − p)⌉."""
        check(0.0, final)
        if final == 1:
            raise InputError(f"a constant fraction of {self.p:g} never removes all; try a final fraction below 1")
        return math.ceil(math.log1p(-final) / math.log1p(-self.p) - _CLOSE) if final > _CLOSE else int(final > 0)

    def __call__(self, progress: float, final: float) -> float:
        """The fraction removed at ``progress``."""
        check(progress, final)
        if progress == 1 and final < 1:
            return final
        return min(final, 1 - math.pow(1 - self.p, progress * self.num_steps(final)))
