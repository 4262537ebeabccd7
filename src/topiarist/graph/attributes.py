"""The integers a model keeps in Python: `num_heads`, `in_features`, `normalized_shape[0]`, `config->hidden_size`.

A path names one of them: the module's dotted name, a dot, the attribute, and steps into what the attribute holds::

    path  = [module "."] name {step}
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
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from topiarist.errors import InputError, nearest
from topiarist.graph.copies import named_modules

_INTERNAL = frozenset(nn.Module().__dict__)
_PLAIN = (bool, int, float, complex, str, type(None))
_HOLDS_NONE = (bool, float, str, type(None))
_DEEPEST = 4
_LONGEST = 1024  # a longer container holds data, not sizes
_NAME = r"[^\W\d]\w*"
_TEXT_KEY = re.compile(r"[\w .\-/:]+")
_STEP = re.compile(rf'->(?P<field>{_NAME})|\[(?P<index>-?\d+)\]|\["(?P<key>{_TEXT_KEY.pattern})"\]')
_PATH = re.compile(
    rf'(?:(?P<module>.*)\.)?(?P<name>{_NAME})(?P<steps>(?:->{_NAME}|\[-?\d+\]|\["{_TEXT_KEY.pattern}"\])*)', re.DOTALL
)


def integer_attributes(model: nn.Module) -> dict[str, int]:
    """Every integer that the modules of ``model`` hold outside their tensors, by path.

    Looked into: tuples, lists, dicts, dataclasses and plain objects, four levels deep. Left out: booleans and enums,
    what `nn.Module` keeps for itself, names that begin with two underscores, other modules, tensors, callables, and
    objects of classes from torch or the standard library (namespaces excepted).

    Example:
        >>> integer_attributes(nn.Sequential(nn.LayerNorm(8)))
        {'0.normalized_shape[0]': 8}
    """
    found: dict[str, int] = {}
    for prefix, module in _prefixed(model):
        for name, value in _holding(module):
            if type(value) is int:  # the commonest, without detours
                found[prefix + name] = value
            elif type(value) is tuple and all(type(item) is int for item in value):
                found.update([(f"{prefix}{name}[{i}]", item) for i, item in enumerate(value)])
            else:
                found.update((prefix + name + steps, plain) for steps, plain in _walk(value, ()) if _is_integer(plain))
    return found


def plain_attributes(model: nn.Module) -> dict[str, Any]:
    """Every integer, and every other number, truth value, text and None in the same places, by path.

    Example:
        >>> plain_attributes(nn.Sequential(nn.LayerNorm(8)))
        {'0.normalized_shape[0]': 8, '0.eps': 1e-05, '0.elementwise_affine': True}
    """
    found: dict[str, Any] = {}
    for prefix, module in _prefixed(model):
        for name, value in module.__dict__.items():
            if name not in _INTERNAL and _is_name(name):
                found.update((prefix + name + steps, plain) for steps, plain in _walk(value, ()))
    return found


def get(model: nn.Module, path: str) -> int:
    """The integer at ``path``.

    Raises:
        InputError: there is no integer at that path.

    Example:
        >>> get(nn.Sequential(nn.LayerNorm(8)), "0.normalized_shape[0]")
        8
    """
    return _held(model, path, *_parse(model, path))


def holder(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that holds the integer at ``path``, and the name of the module's attribute that the path goes through.

    Raises:
        InputError: ``path`` is no such path, or the model has no such module.
    """
    module, name, _ = _parse(model, path)
    return module, name


def set(model: nn.Module, path: str, value: int) -> None:
    """Put another integer at ``path``, where there is one already.

    Tuples are rebuilt, and lists, dicts and objects on the way are copied (shallowly) first: whoever else holds them,
    another module or the caller of a constructor, keeps theirs as it was.

    Raises:
        InputError: there is no integer at that path, or ``value`` is not one.

    Example:
        >>> norm = nn.LayerNorm((4, 8))
        >>> set(norm, "normalized_shape[1]", 6)
        >>> norm.normalized_shape
        (4, 6)
    """
    update(model, {path: value})


def update(model: nn.Module, values: Mapping[str, int]) -> None:
    """Put other integers at several paths at once, as `set` does.

    Modules that share an object and ask for the same of it share its copy; where they ask for two values, each gets
    a copy of its own.

    Raises:
        InputError: there is no integer at one of the paths, or a value is not one; nothing is changed then.

    Example:
        >>> from types import SimpleNamespace
        >>> model, config = nn.Sequential(nn.Identity(), nn.Identity()), SimpleNamespace(width=8)
        >>> model[0].config = model[1].config = config
        >>> update(model, {"0.config->width": 6, "1.config->width": 6})
        >>> model[0].config is model[1].config, model[0].config.width, config.width
        (True, 6, 8)
    """
    wanted: dict[tuple[int, str], tuple[nn.Module, str, _Changes]] = {}
    for path, value in values.items():
        module, name, steps = _settable(model, path, value)
        wanted.setdefault((id(module), name), (module, name, {}))[2][steps] = value
    memo: dict[Any, Any] = {}
    for module, name, changes in wanted.values():
        module.__dict__[name] = _changed(module.__dict__[name], changes, memo)


@contextmanager
def replaced(model: nn.Module, make: Callable[[str, int], int]) -> Iterator[None]:
    """Inside the ``with``, every integer is what ``make`` returns for its path and value.

    Afterwards the very objects of before are back.

    Example:
        >>> norm = nn.LayerNorm((4, 8))
        >>> with replaced(norm, lambda path, value: value + 1):
        ...     norm.normalized_shape
        (5, 9)
    """
    before: list[tuple[dict[str, Any], str, Any]] = []
    try:
        for prefix, module in _prefixed(model):
            for name, value in _holding(module):
                made = _made(value, prefix + name, make)
                if made is not value:
                    before.append((module.__dict__, name, value))
                    module.__dict__[name] = made
        yield
    finally:
        for held, name, value in before:
            held[name] = value


def _made(value: Any, path: str, make: Callable[[str, int], int]) -> Any:
    """``value`` with every integer replaced; itself where it holds none."""
    if type(value) is int:  # the commonest, without detours
        return make(path, value)
    if type(value) is tuple and all(type(item) is int for item in value):
        return tuple([make(f"{path}[{i}]", item) for i, item in enumerate(value)])
    found = [(steps, number) for steps, number in _walk(value, ()) if _is_integer(number)]
    changes = {_steps(steps): make(path + steps, number) for steps, number in found}
    return _changed(value, changes, {}) if changes else value


Step = tuple[str, str | int]  # ("field", name), ("index", position) or ("key", key)
_Changes = dict[tuple[Step, ...], int]  # steps from one object → the integer at their end


def _prefixed(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(f"{name}." if name else "", module) for name, module in named_modules(model)]


def _holding(module: nn.Module) -> list[tuple[str, Any]]:
    """The attributes of a module that may hold integers."""
    held = module.__dict__.items()
    return [(n, v) for n, v in held if n not in _INTERNAL and type(v) not in _HOLDS_NONE and _is_name(n)]


def _walk(value: Any, above: tuple[int, ...]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, _PLAIN) and not isinstance(value, enum.Enum):
        yield "", value
    elif len(above) < _DEEPEST and id(value) not in above:
        for step, child in _children(value):
            for steps, number in _walk(child, (*above, id(value))):
                yield _written(step) + steps, number


def _children(value: Any) -> Iterator[tuple[Step, Any]]:
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
        yield from ((("field", name), child) for name, child in _fields(value).items() if _is_name(name))


def _changed(value: Any, changes: _Changes, memo: dict[Any, Any]) -> Any:
    """A copy of ``value`` along the steps of ``changes``, with their numbers; the same copy for the same changes."""
    if () in changes:
        return changes[()]
    numbers = frozenset((steps, n if type(n) is int else id(n)) for steps, n in changes.items())
    key = (id(value), numbers)
    if key not in memo:
        below: dict[Step, _Changes] = {}
        for (first, *rest), number in changes.items():
            below.setdefault(first, {})[tuple(rest)] = number
        children = dict(_children(value))
        new = {step[1]: _changed(children[step], deeper, memo) for step, deeper in below.items()}
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
    if isinstance(value, (nn.Module, torch.Tensor, type, types.ModuleType, enum.Enum)) or callable(value):
        return False
    room = type(value).__module__.partition(".")[0]
    return room != "torch" and (room == "__main__" or room not in sys.stdlib_module_names)


def _can_rebuild(value: tuple[Any, ...]) -> bool:
    return type(value) in (tuple, torch.Size) or hasattr(value, "_make")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, (bool, enum.Enum))


@functools.cache
def _is_name(name: Any) -> bool:
    return isinstance(name, str) and re.fullmatch(_NAME, name) is not None and not name.startswith("__")


def _written(step: Step) -> str:
    kind, key = step
    return {"field": f"->{key}", "index": f"[{key}]", "key": f'["{key}"]'}[kind]


def _parse(model: nn.Module, path: str) -> tuple[nn.Module, str, tuple[Step, ...]]:
    match = _PATH.fullmatch(path)
    if match is None or not _is_name(match["name"]) or match["name"] in _INTERNAL:
        raise InputError(f"{path!r} is not the path of an integer attribute; {_near(model, path)}")
    module: nn.Module | None = model
    for part in match["module"].split(".") if match["module"] else ():
        module = None if module is None else module._modules.get(part)
    if module is None:
        raise InputError(f"{path!r}: the model has no module {match['module']!r}; {_near(model, path)}")
    return module, match["name"], _steps(match["steps"])


@functools.cache
def _steps(text: str) -> tuple[Step, ...]:
    found: list[Step] = []
    for step in _STEP.finditer(text):
        kind, key = str(step.lastgroup), step[str(step.lastgroup)]
        found.append((kind, int(key) if kind == "index" else key))
    return tuple(found)


def _held(model: nn.Module, path: str, module: nn.Module, name: str, steps: tuple[Step, ...]) -> int:
    value = _child(module.__dict__, name, model, path)
    for step in steps:
        value = _child(dict(_children(value)), step, model, path)
    if not _is_integer(value):
        raise InputError(f"{path!r} holds {type(value).__name__}, not an integer; {_near(model, path)}")
    number: int = value
    return number


def _settable(model: nn.Module, path: str, value: Any) -> tuple[nn.Module, str, tuple[Step, ...]]:
    """The place at ``path``, where an integer is and is to go."""
    if not _is_integer(value):
        raise InputError(f"{path!r} takes an integer, got {value!r}")
    place = _parse(model, path)
    _held(model, path, *place)
    return place


def _child(holder: Mapping[Any, Any], key: Any, model: nn.Module, path: str) -> Any:
    if key not in holder:
        raise InputError(f"the model has no attribute {path!r}; {_near(model, path)}")
    return holder[key]


def _near(model: nn.Module, path: str) -> str:
    return nearest(path, integer_attributes(model))
