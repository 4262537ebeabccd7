"""What layers return and hand on to one another, as seen while a model runs: which of them can be left out, and how.

A layer maps its first input x to x', and may return more: a state that it passes through or changes (a position bias,
a second stream), or what nobody uses (attention weights). It can go where x' has the shape of x, and everything else it
returns is an input of its own, or has the place of one (what the others of its class return there, they are given
there), or is not used by anyone. What remains is used and made by the layer alone, so that the layer stays.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from topiarist.graph.forms import addresses, first_tensor, leaves, written

_COPIED = (bool, int, float, complex, str, type(None))  # equal ones may be one object by accident
_Key = tuple[str, str]  # a module and where in what it returns


@dataclass
class _Call:
    """One call of a module that could be left out: what it returned, without the tensors, and what stands there.

    ``settled`` are leaves that are certain; ``open`` are, for others, the inputs of their shape.
    """

    kind: type
    shape: Any
    settled: dict[str, str]
    open: dict[str, set[str]]


_PLAIN = _Call(object, None, {"": "x"}, {})  # a tensor for a tensor like it


class Handed:
    """What the modules of a model return in all runs of one trace."""

    def __init__(self) -> None:
        self._calls: dict[str, list[_Call | None]] = defaultdict(list)
        self._users: dict[_Key, str] = {}  # what has been used, and the module that did first
        self._links: dict[tuple[type, str], set[str]] = defaultdict(set)  # returned there → given there by its class
        self._held: dict[int, tuple[Tensor, list[_Key]]] = {}  # what is to be watched, by id
        self._made: dict[int, dict[type, str]] = defaultdict(dict)  # what classes return, by id, and where

    def forget(self) -> None:
        """The tensors are gone."""
        self._held.clear()
        self._made.clear()

    @property
    def is_watching(self) -> bool:
        """Whether there are tensors whose use matters."""
        return bool(self._held)

    def used(self, values: Iterable[Any], module: str) -> None:
        """``module`` uses these tensors, alone or in lists."""
        for value in values:
            if isinstance(value, Tensor):
                for key in self._held[id(value)][1] if id(value) in self._held else ():
                    self._users.setdefault(key, module)
            elif isinstance(value, (list, tuple)):
                self.used(value, module)

    def returned(self, name: str, module: nn.Module, args: Sequence[Any], kwargs: Any, out: Any, counts: bool) -> None:
        """A module has returned; ``counts`` says whether in the way that matters, and not for another look."""
        x = first_tensor(args, kwargs)
        if type(out) not in (tuple, list, dict):  # as mostly
            if counts:
                is_plain = isinstance(out, Tensor) and x is not None and _alike(out, x)
                self._calls[name].append(_PLAIN if is_plain else None)
            return
        given = list(addresses(args, kwargs, _positions(module)))
        call = _call_of(type(module), out, x, given)
        if counts:
            self._calls[name].append(call)
            self._link(type(module), given)
        if call is not None:
            self._watch(name, call, out)

    def _link(self, kind: type, given: Sequence[tuple[str, Any]]) -> None:
        """A module of this class was given what others of it have returned."""
        for address, value in given:
            place = self._made.get(id(value), {}).get(kind)
            if place is not None:
                self._links[kind, place].add(address)

    def _watch(self, name: str, call: _Call, out: Any) -> None:
        for place, value in leaves(out):
            if isinstance(value, Tensor):
                self._made[id(value)][call.kind] = place
            if place in call.open:
                self._held.setdefault(id(value), (value, []))[1].append((name, place))

    def bypasses(self) -> tuple[dict[str, str], dict[str, str]]:
        """The forms of the modules that can be left out, and of those that only what they make keeps, why."""
        forms: dict[str, str] = {}
        makers: dict[str, str] = {}
        for name, calls in self._calls.items():
            able = [call for call in calls if call is not None]
            if len(able) < len(calls):
                continue
            whys = [why for call in able if (why := self._makes(name, call))]
            found = set() if whys else {self._form(name, call) for call in able}
            if whys:
                makers[name] = whys[0]
            elif len(found) == 1 and all(found):
                forms[name] = found.pop()
        return forms, makers

    def _makes(self, name: str, call: _Call) -> str:
        """What a call made beside its first output and somebody uses; empty where there is nothing."""
        for place in call.open:
            user = self._users.get((name, place))
            if user is not None and self._given(call, place) is None:
                who = f"{user} uses it" if user else "the model returns it"
                return f"it makes what it returns at {place}, and {who}"
        return ""

    def _form(self, name: str, call: _Call) -> str:
        handed = {place: self._given(call, place) or "-" for place in call.open}
        return written(call.shape, {**call.settled, **handed})

    def _given(self, call: _Call, place: str) -> str | None:
        """Where a call was given what it returned there anew: where others of its class are given what these return."""
        links = self._links.get((call.kind, place), set())
        return next(iter(links)) if len(links) == 1 and links <= call.open[place] else None


def _call_of(kind: type, out: Any, x: Tensor | None, given: Sequence[tuple[str, Any]]) -> _Call | None:
    """What is known of one call; None where it could not be left out whatever becomes of what it returned."""
    leaf, made = "x", dict(leaves(out))
    if x is None:
        leaf, x = next(((at, value) for at, value in given if isinstance(value, Tensor)), ("", None))
    first = next(iter(made.values()), None)
    if x is None or not isinstance(first, Tensor) or not _alike(first, x):
        return None
    settled: dict[str, str] = {}
    beside: dict[str, set[str]] = {}
    for i, (place, value) in enumerate(made.items()):
        passed = next((at for at, each in given if each is value), "")
        if i == 0 or value is None:
            settled[place] = leaf if i == 0 else "-"
        elif passed and not isinstance(value, _COPIED):
            settled[place] = passed
        elif isinstance(value, Tensor):
            beside[place] = {at for at, each in given if isinstance(each, Tensor) and _alike(each, value)}
        else:
            return None
    return _Call(kind, _hollow(out), settled, beside)


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and tuple(map(int, one.shape)) == tuple(map(int, other.shape))


def _hollow(out: Any) -> Any:
    """The tuples, lists and dicts of ``out`` without what they hold at last."""
    if type(out) is dict:
        return {key: _hollow(value) for key, value in out.items()}
    return type(out)(map(_hollow, out)) if type(out) in (tuple, list) else None


def _positions(module: nn.Module) -> list[str]:
    """The names of the parameters of a module's forward that have a position."""
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        return []
    names = []
    for parameter in parameters:
        if parameter.kind not in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            break
        names.append(parameter.name)
    return names
