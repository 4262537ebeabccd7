"""What modules hold beside parameters, buffers and modules: attributes, and what tuples, lists, dicts and objects keep.

A path leads from a module to one thing of these::

    path  = name {step}
    step  = "->" name             a field of a dataclass or of a plain object
          | "[" integer "]"       a position in a tuple or list, or an integer key of a dict
          | '["' text '"]'        a text key of a dict (letters, digits, spaces and _ . - / : only)

Nothing is ever called or looked up through a class: only what an instance itself holds has a path.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import enum
import functools
import re
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

INTERNAL = frozenset(nn.Module().__dict__)
_WITHOUT = frozenset({type(None), bool, int, float, complex, str, bytes, type, types.FunctionType})  # tensors
_DEEPEST = 4
_LONGEST = 1024  # a longer container holds data, not sizes
NAME = r"[^\W\d]\w*"
_TEXT_KEY = re.compile(r"[\w .\-/:]+")
STEPS = rf'(?:->{NAME}|\[-?\d+\]|\["{_TEXT_KEY.pattern}"\])'
_STEP = re.compile(rf'->(?P<field>{NAME})|\[(?P<index>-?\d+)\]|\["(?P<key>{_TEXT_KEY.pattern})"\]')
_OF_TENSORS = re.compile(rf'{NAME}(?:->{NAME}|\[-?\d+\]|\["[\w \-/]+"\])*')  # dots divide the names of modules

Step = tuple[str, str | int]  # ("field", name), ("index", position) or ("key", key)
Changes = dict[tuple[Step, ...], Any]  # steps from one object → what is to be at their end


def children(value: Any) -> Iterator[tuple[Step, Any]]:
    """What ``value`` holds that a step leads to; nothing for what is not a container or a plain object."""
    if isinstance(value, (tuple, list)):
        if len(value) <= _LONGEST and (isinstance(value, list) or _can_rebuild(value)):
            yield from ((("index", i), child) for i, child in enumerate(value))
    elif isinstance(value, dict):
        if len(value) <= _LONGEST:
            for key, child in value.items():
                if type(key) is int:
                    yield ("index", key), child
                elif type(key) is str and _TEXT_KEY.fullmatch(key):
                    yield ("key", key), child
    elif _is_plain(value):
        yield from ((("field", name), child) for name, child in _fields(value).items() if is_name(name))


def walk(value: Any, is_wanted: Callable[[Any], bool], above: tuple[int, ...] = ()) -> Iterator[tuple[str, Any]]:
    """What is wanted in ``value``, four levels deep, with the steps that lead there."""
    if is_wanted(value):
        yield "", value
    elif len(above) < _DEEPEST and id(value) not in above:
        for step, child in children(value):
            for steps, found in walk(child, is_wanted, (*above, id(value))):
                yield written(step) + steps, found


def changed(value: Any, changes: Changes, memo: dict[Any, Any]) -> Any:
    """A copy of ``value`` with what ``changes`` put at the ends of their steps; the same copy for the same changes."""
    if () in changes:
        return changes[()]
    numbers = frozenset((steps, n if type(n) is int else id(n)) for steps, n in changes.items())
    key = (id(value), numbers)
    if key not in memo:
        below: dict[Step, Changes] = {}
        for (first, *rest), number in changes.items():
            below.setdefault(first, {})[tuple(rest)] = number
        held = dict(children(value))
        new = {step[1]: changed(held[step], deeper, memo) for step, deeper in below.items()}
        memo[key] = (value, _with(value, new))  # the value is kept, so that no other takes over its id
    return memo[key][1]


def _with(value: Any, new: Mapping[str | int, Any]) -> Any:
    """A shallow copy of ``value`` with other contents at some of its positions, keys or fields."""
    if isinstance(value, tuple):
        items = [new.get(i, item) for i, item in enumerate(value)]
        return value._make(items) if hasattr(value, "_make") else type(value)(items)
    copied: Any = copy.copy(value)
    for key, child in new.items():
        if isinstance(value, (list, dict)):
            copied[key] = child
        elif key in getattr(copied, "__dict__", {}):
            copied.__dict__[key] = child
        else:
            object.__setattr__(copied, str(key), child)
    return copied


def _fields(value: Any) -> dict[str, Any]:
    held = dict(getattr(value, "__dict__", {}))
    if dataclasses.is_dataclass(value):  # those with slots keep nothing in __dict__
        slots = [f.name for f in dataclasses.fields(value) if f.name in getattr(type(value), "__slots__", ())]
        held.update((name, getattr(value, name)) for name in slots if hasattr(value, name))
    return held


def _is_plain(value: Any) -> bool:
    if isinstance(value, (argparse.Namespace, types.SimpleNamespace)):
        return True
    if isinstance(value, (nn.Module, Tensor, type, types.ModuleType, enum.Enum)) or callable(value):
        return False
    room = type(value).__module__.partition(".")[0]
    return room != "torch" and (room == "__main__" or room not in sys.stdlib_module_names)


def _can_rebuild(value: tuple[Any, ...]) -> bool:
    return type(value) in (tuple, torch.Size) or hasattr(value, "_make")


@functools.cache
def is_name(name: Any) -> bool:
    """Whether an attribute has a path: its name is a text that does not begin with two underscores."""
    return isinstance(name, str) and re.fullmatch(NAME, name) is not None and not name.startswith("__")


def written(step: Step) -> str:
    """A step as it is written in a path."""
    kind, key = step
    return {"field": f"->{key}", "index": f"[{key}]", "key": f'["{key}"]'}[kind]


@functools.cache
def steps_of(text: str) -> tuple[Step, ...]:
    """The steps that a text says."""
    found: list[Step] = []
    for step in _STEP.finditer(text):
        kind, key = str(step.lastgroup), step[str(step.lastgroup)]
        found.append((kind, int(key) if kind == "index" else key))
    return tuple(found)


def held_tensors(module: nn.Module, seen: set[int] | None = None) -> dict[str, Tensor]:
    """The tensors that a module keeps in attributes, and in tuples, lists, dicts and objects there, by path.

    ``seen`` are ids of what other modules hold as well, and whose tensors have a path already; it is added to.

    Example:
        >>> module = nn.Module()
        >>> module.scale, module.tables, module.kept = torch.ones(1), [torch.ones(2)], {"a": (torch.ones(3),)}
        >>> {path: len(tensor) for path, tensor in held_tensors(module).items()}
        {'scale': 1, 'tables[0]': 2, 'kept["a"][0]': 3}
    """
    found: dict[str, Tensor] = {}
    seen = set() if seen is None else seen
    held = module.__dict__
    holding = {name for name in held.keys() - INTERNAL if not _is_without(held[name])}  # none, as mostly
    for name, value in held.items() if holding else ():
        if name not in holding or not is_name(name):
            continue
        if isinstance(value, Tensor):
            found[name] = value
        else:
            found.update(_contained(name, value, seen))
    return found


def _is_without(value: Any) -> bool:
    """Whether a value, or all that a tuple holds, is of the commonest kinds, which hold no tensor."""
    return type(value) in _WITHOUT or (type(value) is tuple and _WITHOUT.issuperset(map(type, value)))


def _contained(name: str, value: Any, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    if id(value) not in seen:
        seen.add(id(value))
        found = walk(value, lambda child: isinstance(child, Tensor))
        yield from ((name + steps, tensor) for steps, tensor in found if _OF_TENSORS.fullmatch(name + steps))


def put_tensor(module: nn.Module, path: str, tensor: Tensor) -> None:
    """Let a module keep another tensor where `held_tensors` has found one; containers on the way are copied first.

    Example:
        >>> module = nn.Module()
        >>> module.tables = before = [torch.ones(2)]
        >>> put_tensor(module, "tables[0]", torch.ones(3))
        >>> len(module.tables[0]), len(before[0])
        (3, 2)
    """
    name = re.match(NAME, path)[0]  # type: ignore[index]
    module.__dict__[name] = changed(module.__dict__[name], {steps_of(path.removeprefix(name)): tensor}, {})
