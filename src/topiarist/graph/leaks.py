"""Caches outside of a model: what a trace left in them is taken out again.

A function under ``functools.lru_cache``, a table in a module-level dict or a recording hook may keep what it sees. Had
it seen a tensor of a trace, which has a shape but no values, the model would go on to compute with that one.
"""

from __future__ import annotations

import functools
import gc
import types
import warnings
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import ref

from torch import Tensor

_PASSING = (types.FrameType, types.TracebackType, types.GeneratorType, types.CellType)  # gone by themselves
_DEEPEST = 4


def evict(tensors: Sequence[ref[Tensor]]) -> None:
    """Take those of ``tensors`` that still live out of the caches, dicts, lists and sets that hold them.

    An attribute that holds one becomes None, as it mostly was before somebody filled it, with a warning.
    """
    if all(tensor() is None for tensor in tensors):
        return
    gc.collect()
    for tensor in tensors:
        kept = tensor()
        if kept is not None:
            _evict(kept, 0)


def _evict(item: Any, depth: int) -> None:
    for holder in _holders(item):
        if isinstance(holder, functools._lru_cache_wrapper):
            holder.cache_clear()
        elif isinstance(holder, dict):
            _take_out(item, holder)
        elif isinstance(holder, list):
            holder[:] = [value for value in holder if value is not item]
        elif isinstance(holder, set):
            holder.discard(item)
        elif any(value is item for value in getattr(holder, "__dict__", {}).values()):
            _take_out(item, vars(holder), holder)
        elif depth < _DEEPEST:
            _evict(holder, depth + 1)


def _take_out(item: Any, holder: Any, owner: Any = None) -> None:
    """Take ``item`` out of a dict: of a cache with its key, of an object's attributes by setting them to None."""
    owners = [owner] if owner is not None else [o for o in gc.get_referrers(holder) if _is_owner(o, holder)]
    for key in [key for key, value in holder.items() if value is item]:
        for named in owners:
            setattr(named, key, None)
            name = getattr(named, "__name__", type(named).__name__)
            warnings.warn(
                f"{name}.{key} kept a tensor of the trace, which has no values; it is None now: call the model once "
                f"before it is traced, so that what it keeps is there already",
                stacklevel=2,
            )
        if not owners:
            del holder[key]


def _is_owner(owner: Any, namespace: dict[Any, Any]) -> bool:
    if isinstance(owner, (types.ModuleType, type)):
        return vars(owner).keys() == namespace.keys()
    return getattr(owner, "__dict__", None) is namespace


def _holders(item: Any) -> Iterator[Any]:
    """Who refers to ``item``, but for what is running now."""
    for holder in gc.get_referrers(item):
        if not isinstance(holder, _PASSING):
            yield holder
