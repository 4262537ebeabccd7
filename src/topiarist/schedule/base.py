"""What a schedule is, and the trial of one."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from topiarist.errors import InputError

Schedule = Callable[[float, float], float]

_PROBES = 100  # a schedule is tried at this many steps of progress …
_FINAL = 0.75  # … towards this fraction, or one half-way between where it starts and 1
_CLOSE = 1e-9


def may_fall(schedule: object) -> bool:
    """Whether a schedule says that it may give back what it took, as `DenseSparseDense` does: ``may_fall = True``."""
    return bool(getattr(schedule, "may_fall", False))


def name_of(schedule: object) -> str:
    """A repr without addresses, the same in every process: a function by its module and name."""
    name = getattr(schedule, "__qualname__", None)
    return repr(schedule) if name is None else f"{getattr(schedule, '__module__', '')}.{name}"


def tried(schedule: Schedule) -> Schedule:
    """The schedule itself, after a trial from progress 0 to 1.

    It must begin at 0, or at its own ``initial``, never fall, and end at the final fraction. One that says
    ``may_fall = True`` may fall and end anywhere from 0 to the final fraction.

    Raises:
        InputError: the object cannot be called, or the function is no schedule.

    Example:
        >>> tried(lambda progress, final: progress * 0.9)
        Traceback (most recent call last):
        ...
        topiarist.errors.InputError: the schedule must reach the final fraction, 0.75, at progress 1, it gives 0.9
    """
    if isinstance(schedule, type) or not callable(schedule):
        raise InputError(f"a schedule is a word or a function (progress, final), got {schedule!r}")
    initial = float(getattr(schedule, "initial", 0.0))
    final = max(_FINAL, (1 + initial) / 2)
    fractions = [schedule(step / _PROBES, final) for step in range(_PROBES + 1)]
    if not abs(fractions[0] - initial) <= _CLOSE:
        raise InputError(f"the schedule must begin with {initial:g} removed, at progress 0 it gives {fractions[0]!r}")
    if may_fall(schedule):
        _check_range(fractions, final)
    else:
        _check_rise(fractions, final)
    return schedule


def _check_range(fractions: list[float], final: float) -> None:
    for step, fraction in enumerate(fractions):
        if not -_CLOSE <= fraction <= final + _CLOSE:
            raise InputError(
                f"the schedule must stay between 0 and the final fraction, {final}, it gives {fraction!r} at progress "
                f"{step / _PROBES}"
            )


def _check_rise(fractions: list[float], final: float) -> None:
    for step, (before, fraction) in enumerate(itertools.pairwise(fractions), 1):
        if not fraction >= before - _CLOSE:
            raise InputError(
                f"the schedule must not fall, it gives {before!r} and then {fraction!r} at progress {step / _PROBES}; "
                "one that may gives itself the attribute may_fall = True"
            )
    if not abs(fractions[-1] - final) <= _CLOSE:
        raise InputError(
            f"the schedule must reach the final fraction, {final}, at progress 1, it gives {fractions[-1]!r}"
        )
