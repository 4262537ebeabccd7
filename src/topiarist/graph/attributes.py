"""The integers a model keeps in Python: `num_heads`, `in_features`, `normalized_shape[0]`, `config->hidden_size`.

A path names one of them: the module's dotted name, a dot, and a path inside of the module (`topiarist.held`).
"""

from __future__ import annotations

import enum
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from topiarist.errors import InputError, nearest
from topiarist.graph.copies import named_modules
from topiarist.held import INTERNAL, NAME, STEPS, Changes, Step, changed, children, is_name, steps_of, walk

_PLAIN = (bool, int, float, complex, str, type(None))
_HOLDS_NONE = (bool, float, str, type(None))
_PATH = re.compile(rf"(?:(?P<module>.*)\.)?(?P<name>{NAME})(?P<steps>{STEPS}*)", re.DOTALL)


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
                held = walk(value, _is_plain)
                found.update((prefix + name + steps, plain) for steps, plain in held if _is_integer(plain))
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
            if name not in INTERNAL and is_name(name):
                found.update((prefix + name + steps, plain) for steps, plain in walk(value, _is_plain))
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
    wanted: dict[tuple[int, str], tuple[nn.Module, str, Changes]] = {}
    for path, value in values.items():
        module, name, steps = _settable(model, path, value)
        wanted.setdefault((id(module), name), (module, name, {}))[2][steps] = value
    memo: dict[Any, Any] = {}
    for module, name, changes in wanted.values():
        module.__dict__[name] = changed(module.__dict__[name], changes, memo)


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
    found = [(steps, number) for steps, number in walk(value, _is_plain) if _is_integer(number)]
    changes = {steps_of(steps): make(path + steps, number) for steps, number in found}
    return changed(value, changes, {}) if changes else value


def _prefixed(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(f"{name}." if name else "", module) for name, module in named_modules(model)]


def _holding(module: nn.Module) -> list[tuple[str, Any]]:
    """The attributes of a module that may hold integers."""
    held = module.__dict__.items()
    return [(n, v) for n, v in held if n not in INTERNAL and type(v) not in _HOLDS_NONE and is_name(n)]


def _is_plain(value: Any) -> bool:
    return isinstance(value, _PLAIN) and not isinstance(value, enum.Enum)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, (bool, enum.Enum))


def _parse(model: nn.Module, path: str) -> tuple[nn.Module, str, tuple[Step, ...]]:
    match = _PATH.fullmatch(path)
    if match is None or not is_name(match["name"]) or match["name"] in INTERNAL:
        raise InputError(f"{path!r} is not the path of an integer attribute; {_near(model, path)}")
    module: nn.Module | None = model
    for part in match["module"].split(".") if match["module"] else ():
        module = None if module is None else module._modules.get(part)
    if module is None:
        raise InputError(f"{path!r}: the model has no module {match['module']!r}; {_near(model, path)}")
    return module, match["name"], steps_of(match["steps"])


def _held(model: nn.Module, path: str, module: nn.Module, name: str, steps: tuple[Step, ...]) -> int:
    value = _child(module.__dict__, name, model, path)
    for step in steps:
        value = _child(dict(children(value)), step, model, path)
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
