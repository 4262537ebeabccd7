"""The words that recipes and the command line use for allocations."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from topiarist.allocation.base import Allocation
from topiarist.allocation.global_ import Global
from topiarist.allocation.per_layer import PerLayer
from topiarist.allocation.uniform import Uniform
from topiarist.errors import InputError, nearest

_WORDS: dict[str, Callable[[], Allocation]] = {"uniform": Uniform, "global": Global}


def resolve(allocation: str | Mapping[str, float] | Allocation) -> Allocation:
    """The allocation that a word, a dict of ratios or an object means.

    Raises:
        InputError: the word is not known, or the object cannot be called.

    Example:
        >>> resolve("global")
        Global(normalize='auto')
        >>> resolve({"conv*": 0.5, "Linear": 0.9}).ratios["Linear"]
        0.9
    """
    if isinstance(allocation, str):
        if allocation == "sensitivity":
            raise InputError("allocation 'sensitivity' needs its table; try Sensitivity(analyse(…))")
        if allocation not in _WORDS:
            raise InputError(f"no allocation is called {allocation!r} ({nearest(allocation, _WORDS)})")
        return _WORDS[allocation]()
    if isinstance(allocation, Mapping):
        return PerLayer(allocation)
    if isinstance(allocation, type) or not callable(allocation):
        raise InputError(f"an allocation is a word of {[*_WORDS]}, a dict or a callable object, got {allocation!r}")
    return allocation
