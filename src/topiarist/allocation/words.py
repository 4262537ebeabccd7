"""The words that recipes and the command line use for allocations.

What follows a colon are the arguments, in their order: ``"lamp"``, ``"threshold:0.5"``, ``"smallest:9:layer"``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from topiarist.allocation.base import Allocation
from topiarist.allocation.erk import ErdosRenyi
from topiarist.allocation.global_ import Global
from topiarist.allocation.isomorphic import Isomorphic
from topiarist.allocation.knapsack import Knapsack
from topiarist.allocation.lamp import Lamp
from topiarist.allocation.outliers import Outliers
from topiarist.allocation.owl import Owl
from topiarist.allocation.per_layer import PerLayer
from topiarist.allocation.sensitivity import Sensitivity, SensitivityTable
from topiarist.allocation.threshold import Smallest, Threshold
from topiarist.allocation.tolerance import Tolerance
from topiarist.allocation.uniform import Uniform
from topiarist.allocation.uniform_plus import UniformPlus
from topiarist.errors import InputError, nearest

# A word, what it makes, and the types of its arguments.
_WORDS: dict[str, tuple[Callable[..., Allocation], tuple[type, ...]]] = {
    "uniform": (Uniform, ()),
    "uniform+": (UniformPlus, (float,)),
    "global": (Global, (str,)),
    "er": (partial(ErdosRenyi, kernel=False), ()),
    "erk": (ErdosRenyi, ()),
    "lamp": (Lamp, ()),
    "owl": (Owl, (float, float, str)),
    "isomorphic": (Isomorphic, (str,)),
    "knapsack": (Knapsack, (str, int)),
    "threshold": (Threshold, (float,)),
    "smallest": (Smallest, (int, str)),
    "outliers": (Outliers, (float,)),
    "sensitivity": (Sensitivity, ()),
    "tolerance": (Tolerance, (float,)),
}
_REQUIRED = {"threshold": "threshold:0.5", "smallest": "smallest:1000"}
_TABLED = ("sensitivity", "tolerance")
WORDS = tuple(_WORDS)


def resolve(allocation: str | Mapping[str, float] | Allocation, table: SensitivityTable | None = None) -> Allocation:
    """The allocation that a word, a dict of ratios or an object means; ``table`` is for the words that need one.

    Raises:
        InputError: the word is not known, its arguments do not fit, or the object cannot be called.

    Example:
        >>> resolve("global")
        Global(normalize='auto')
        >>> resolve("smallest:3:layer")
        Smallest(n=3, scope='layer')
        >>> resolve({"conv*": 0.5, "Linear": 0.9}).ratios["Linear"]
        0.9
    """
    if isinstance(allocation, str):
        return _of_word(allocation, table)
    if isinstance(allocation, Mapping):
        return PerLayer(allocation)
    if isinstance(allocation, type) or not callable(allocation):
        raise InputError(f"an allocation is a word of {[*WORDS]}, a dict or a callable object, got {allocation!r}")
    return allocation


def needs_table(allocation: object) -> bool:
    """Whether ``allocation`` is a word that stands for an allocation by a sensitivity table.

    Example:
        >>> needs_table("tolerance:0.02"), needs_table("global")
        (True, False)
    """
    return isinstance(allocation, str) and allocation.partition(":")[0] in _TABLED


def takes_budget(word: str) -> bool:
    """Whether the allocation of this word takes a budget, or has its own amounts; a word not known takes one.

    Example:
        >>> takes_budget("global"), takes_budget("threshold:0.5")
        (True, False)
    """
    make, _ = _WORDS.get(word.partition(":")[0], (None, ()))
    return bool(getattr(make, "needs_budget", True))


def _of_word(text: str, table: SensitivityTable | None) -> Allocation:
    word, *given = text.split(":")
    if word not in _WORDS:
        raise InputError(f"no allocation is called {word!r} ({nearest(word, _WORDS)})")
    make, kinds = _WORDS[word]
    if len(given) > len(kinds) or (word in _REQUIRED and not given):
        wanted = f"try {_REQUIRED[word]!r}" if word in _REQUIRED else f"it takes {len(kinds)} at most"
        raise InputError(f"allocation {word!r} has {len(given)} arguments in {text!r}; {wanted}")
    arguments: list[Any] = [_read(value, kind, text) for value, kind in zip(given, kinds, strict=False)]
    if word not in _TABLED:
        return make(*arguments)
    if table is None:
        raise InputError(f"allocation {word!r} needs its table; try {make.__name__}(analyse(…))")
    return make(table, *arguments)


def _read(value: str, kind: type, text: str) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise InputError(f"{value!r} in the allocation {text!r} is no {kind.__name__}") from None
