"""The words that recipes and the command line use for schedules, and the check of a user's own function."""

from __future__ import annotations

from collections.abc import Callable

from topiarist.errors import InputError, nearest
from topiarist.schedule.constant_fraction import ConstantFraction
from topiarist.schedule.progress import cubic, exponential, linear, one_shot

Schedule = Callable[[float, float], float]

_WORDS: dict[str, Schedule] = {
    "one-shot": one_shot,
    "linear": linear,
    "cubic": cubic,
    "exponential": exponential,
    "constant-fraction": ConstantFraction(),
}
_PROBES = 100  # a function is tried at this many steps of progress …
_FINAL = 0.75  # … towards this fraction
_CLOSE = 1e-9


def resolve(schedule: str | Schedule) -> Schedule:
    """The schedule that a word or a function ``(progress, final) -> fraction removed`` means.

    A user's function is tried from progress 0 to 1: it must begin at 0, never fall, and end at ``final``.

    Raises:
        InputError: the word is not known, the object cannot be called, or the function is no schedule.

    Example:
        >>> resolve("cubic")(1.0, 0.9)
        0.9
        >>> resolve(lambda progress, final: progress * 0.9)
        Traceback (most recent call last):
        ...
        topiarist.errors.InputError: the schedule must reach the final fraction, 0.75, at progress 1, it gives 0.9
    """
    if isinstance(schedule, str):
        if schedule not in _WORDS:
            raise InputError(f"no schedule is called {schedule!r} ({nearest(schedule, _WORDS)})")
        return _WORDS[schedule]
    if isinstance(schedule, type) or not callable(schedule):
        raise InputError(f"a schedule is a word of {[*_WORDS]} or a function (progress, final), got {schedule!r}")
    _try(schedule)
    return schedule


def _try(schedule: Schedule) -> None:
    before = 0.0
    for step in range(_PROBES + 1):
        progress = step / _PROBES
        fraction = schedule(progress, _FINAL)
        if step == 0 and not abs(fraction) <= _CLOSE:
            raise InputError(f"the schedule must begin with nothing removed, at progress 0 it gives {fraction!r}")
        if not fraction >= before - _CLOSE:
            raise InputError(
                f"the schedule must not fall, it gives {before!r} and then {fraction!r} at progress {progress}"
            )
        before = fraction
    if not abs(before - _FINAL) <= _CLOSE:
        raise InputError(f"the schedule must reach the final fraction, {_FINAL}, at progress 1, it gives {before!r}")
