"""Schedules as pure functions of progress: how much is removed on the way to the final fraction."""

from __future__ import annotations

import math

from topiarist.errors import InputError


def one_shot(progress: float, final: float) -> float:
    """All at once, at the first step: ``final`` as soon as there is progress.

    Raises:
        InputError: ``progress`` or ``final`` lies outside [0, 1].

    Example:
        >>> one_shot(0.0, 0.9), one_shot(0.1, 0.9)
        (0.0, 0.9)
    """
    check(progress, final)
    return final if progress > 0 else 0.0


def linear(progress: float, final: float) -> float:
    """The same share at every step: s(t) = s_f · t.

    Raises:
        InputError: ``progress`` or ``final`` lies outside [0, 1].

    Example:
        >>> linear(0.5, 0.9)
        0.45
    """
    check(progress, final)
    return final * progress


def exponential(progress: float, final: float) -> float:
    """What remains shrinks by the same factor at every step: 1 − s(t) = (1 − s_f)^t (Tanaka et al. 2020, SynFlow).

    Raises:
        InputError: ``progress`` or ``final`` lies outside [0, 1].

    Example:
        >>> exponential(0.5, 0.75)
        0.5
    """
    check(progress, final)
    return final if progress == 1 else 1 - math.pow(1 - final, progress)


def check(progress: float, final: float) -> None:
    """Refuse progress and final fractions outside [0, 1]."""
    for what, value in (("progress", progress), ("the final fraction removed", final)):
        if not 0.0 <= value <= 1.0:
            raise InputError(f"{what} must lie in [0, 1], got {value!r}")
