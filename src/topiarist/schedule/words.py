"""The words that recipes and the command line use for schedules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import overload

from topiarist.errors import InputError, nearest
from topiarist.schedule.base import Schedule, tried
from topiarist.schedule.constant_fraction import ConstantFraction
from topiarist.schedule.cosine import cosine
from topiarist.schedule.dense_sparse_dense import DenseSparseDense
from topiarist.schedule.one_cycle import OneCycle
from topiarist.schedule.per_layer import PerLayer
from topiarist.schedule.polynomial import cubic
from topiarist.schedule.progress import exponential, linear, one_shot
from topiarist.schedule.window import Window

_WORDS: dict[str, Schedule] = {
    "one-shot": one_shot,
    "linear": linear,
    "cubic": cubic,
    "cosine": cosine,
    "exponential": exponential,
    "constant-fraction": ConstantFraction(),
    "one-cycle": OneCycle(),
    "movement": Window(cubic, begin=0.1, end=0.8),
    "dense-sparse-dense": DenseSparseDense(),
}


@overload
def resolve(schedule: str | Schedule) -> Schedule: ...
@overload
def resolve(schedule: str | Schedule | Mapping[str, str | Schedule] | PerLayer) -> Schedule | PerLayer: ...
def resolve(schedule: str | Schedule | Mapping[str, str | Schedule] | PerLayer) -> Schedule | PerLayer:
    """The schedule that a word, a function ``(progress, final) -> fraction removed`` or a dict of them by layer means.

    A user's function is tried from progress 0 to 1, see `topiarist.schedule.base.tried`.

    Raises:
        InputError: the word is not known, the object cannot be called, or the function is no schedule.

    Example:
        >>> resolve("cubic")(1.0, 0.9)
        0.9
        >>> sorted(resolve({"conv*": "linear", "*": "cubic"}).schedules)
        ['*', 'conv*']
    """
    if isinstance(schedule, PerLayer):
        return schedule
    if isinstance(schedule, Mapping):
        return PerLayer({key: resolve(each) for key, each in schedule.items()})
    if isinstance(schedule, str):
        if schedule not in _WORDS:
            raise InputError(f"no schedule is called {schedule!r} ({nearest(schedule, _WORDS)})")
        return _WORDS[schedule]
    if isinstance(schedule, type) or not callable(schedule):
        raise InputError(
            f"a schedule is a word of {[*_WORDS]}, a function (progress, final) or a dict, got {schedule!r}"
        )
    return tried(schedule)
