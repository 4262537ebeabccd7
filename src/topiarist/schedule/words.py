"""The words that recipes and the command line use for schedules.

What follows a colon are the arguments, in their order, all numbers: ``"polynomial:2"``, ``"movement:0.05:0.7"``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from topiarist.errors import InputError, nearest
from topiarist.schedule.base import Schedule, tried
from topiarist.schedule.constant_fraction import ConstantFraction
from topiarist.schedule.cosine import cosine
from topiarist.schedule.dense_sparse_dense import DenseSparseDense
from topiarist.schedule.one_cycle import OneCycle
from topiarist.schedule.per_layer import PerLayer
from topiarist.schedule.polynomial import Polynomial, cubic
from topiarist.schedule.progress import exponential, linear, one_shot
from topiarist.schedule.window import Window


def _movement(begin: float = 0.1, end: float = 0.8) -> Schedule:
    return Window(cubic, begin, end)


_FUNCTIONS: dict[str, Schedule] = {
    "one-shot": one_shot,
    "linear": linear,
    "cubic": cubic,
    "cosine": cosine,
    "exponential": exponential,
}
_MAKERS: dict[str, Callable[..., Schedule]] = {
    "polynomial": Polynomial,
    "constant-fraction": ConstantFraction,
    "one-cycle": OneCycle,
    "movement": _movement,
    "dense-sparse-dense": DenseSparseDense,
}
WORDS = (*_FUNCTIONS, *_MAKERS)


def resolve(schedule: str | Schedule | Mapping[str, str | Schedule] | PerLayer) -> Schedule | PerLayer:
    """The schedule that a word, a function ``(progress, final) -> fraction removed`` or a dict of them by layer means.

    A user's function is tried from progress 0 to 1, see `topiarist.schedule.base.tried`.

    Raises:
        InputError: the word is not known or its arguments do not fit, the object cannot be called, or the function is
            no schedule.

    Example:
        >>> resolve("cubic")(1.0, 0.9)
        0.9
        >>> sorted(resolve({"conv*": "linear", "*": "cubic"}).schedules)
        ['*', 'conv*']
    """
    if isinstance(schedule, PerLayer):
        return schedule
    if isinstance(schedule, Mapping):
        return PerLayer({key: _one(each) for key, each in schedule.items()})
    return _one(schedule)


def _one(schedule: str | Schedule) -> Schedule:
    if isinstance(schedule, str):
        return _from_word(schedule)
    if isinstance(schedule, type) or not callable(schedule):
        raise InputError(
            f"a schedule is a word of {[*WORDS]}, a function (progress, final) or a dict, got {schedule!r}"
        )
    return tried(schedule)


def _from_word(text: str) -> Schedule:
    word, *arguments = text.split(":")
    if word not in WORDS:
        raise InputError(f"no schedule is called {text!r} ({nearest(word, WORDS)})")
    if word in _FUNCTIONS:
        if arguments:
            raise InputError(f"{word} takes no arguments, got {text!r}; try {word!r}")
        return _FUNCTIONS[word]
    try:
        return _MAKERS[word](*map(float, arguments))
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the arguments of {text!r} do not fit ({error}); try {word!r}") from error
