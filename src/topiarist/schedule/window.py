"""A window of the training in which another schedule runs, and a fraction from which it starts."""

from __future__ import annotations

from dataclasses import dataclass

from topiarist.errors import InputError
from topiarist.schedule.base import Schedule, may_fall, name_of, tried
from topiarist.schedule.progress import check


@dataclass(frozen=True)
class Window:
    """``schedule`` between ``begin`` and ``end`` (fractions of the way), from ``initial`` up; constant outside.

    s(t) = s_i + (1 − s_i) · schedule(u, (s_f − s_i) / (1 − s_i)) with u = clip((t − begin) / (end − begin), 0, 1):
    the schedule runs over what ``initial`` leaves. With a polynomial that is s_f + (s_i − s_f)(1 − u)^p of Zhu &
    Gupta 2017; with `cubic`, ``begin=0.1`` and ``end=0.8`` the plateaus of movement pruning (Sanh, Wolf, Rush 2020),
    which is the word ``"movement"``. Leave a fifth of the training or more after ``end``, to recover.

    Raises:
        InputError: not 0 ≤ begin < end ≤ 1, or ``initial`` outside [0, 1); when called, a final fraction below
            ``initial``, or fractions outside [0, 1].

    Example:
        >>> from topiarist.schedule import cubic
        >>> ramp = Window(cubic, begin=0.1, end=0.8, initial=0.2)
        >>> [round(ramp(progress, 0.9), 4) for progress in (0.05, 0.1, 0.45, 0.8, 1.0)]
        [0.2, 0.2, 0.8125, 0.9, 0.9]
    """

    schedule: Schedule
    begin: float = 0.0
    end: float = 1.0
    initial: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.begin < self.end <= 1.0:
            raise InputError(f"a window must have 0 ≤ begin < end ≤ 1, got {self.begin!r} to {self.end!r}")
        if not 0.0 <= self.initial < 1.0:
            raise InputError(f"the initial fraction must lie in [0, 1), got {self.initial!r}")
        tried(self.schedule)

    def __repr__(self) -> str:
        return f"Window({name_of(self.schedule)}, begin={self.begin}, end={self.end}, initial={self.initial})"

    @property
    def may_fall(self) -> bool:
        """Whether the schedule inside may."""
        return may_fall(self.schedule)

    def __call__(self, progress: float, final: float) -> float:
        """The fraction removed at ``progress``."""
        check(progress, final)
        if final < self.initial:
            raise InputError(f"the window starts at {self.initial:g} removed, the final fraction is {final:g}")
        inside = min(max((progress - self.begin) / (self.end - self.begin), 0.0), 1.0)
        left = 1 - self.initial
        removed = self.initial + left * self.schedule(inside, (final - self.initial) / left)
        return min(removed, final)  # rounding may exceed it by a bit
