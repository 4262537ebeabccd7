"""Module lists without some of their entries: what is left of the experts of a mixture."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from topiarist.errors import InputError, nearest

_KEPT = "_kept_places"  # what a shortened list holds: a frozenset, in which no integers of the model are looked for


def shorten(model: nn.Module, path: str, places: Iterable[int]) -> None:
    """Leave only the entries at these places in a module list of ``model``, numbered anew in the same order.

    The list stays the object that it is, and knows which places of the whole one it has kept (`kept_places`).

    Raises:
        InputError: there is no such list, or it has no such entries.

    Example:
        >>> model = nn.Module()
        >>> model.experts = nn.ModuleList([nn.ReLU(), nn.Tanh(), nn.SiLU()])
        >>> shorten(model, "experts", [0, 2])
        >>> model.experts, kept_places(model.experts)
        (ModuleList(
          (0): ReLU()
          (1): SiLU()
        ), [0, 2])
    """
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    if path not in lists:
        raise InputError(f"{type(model).__name__} has no module list {path!r} to shorten ({nearest(path, lists)})")
    entries, wanted = list(lists[path]), sorted(set(places))
    if not wanted or wanted[0] < 0 or wanted[-1] >= len(entries):
        raise InputError(f"{path!r} has {len(entries)} entries, asked to keep those at {wanted}")
    before = kept_places(lists[path])
    lists[path]._modules = {str(new): entries[old] for new, old in enumerate(wanted)}
    lists[path].__dict__[_KEPT] = frozenset(before[old] for old in wanted)


def kept_places(entries: nn.ModuleList) -> list[int]:
    """The places that the entries of a list had before any was removed, in order."""
    return sorted(entries.__dict__.get(_KEPT, range(len(entries))))


def is_shortened(module: nn.Module) -> bool:
    """Whether a module is a list that has lost entries."""
    return isinstance(module, nn.ModuleList) and _KEPT in module.__dict__
