"""Copies of models whose modules are new and whose tensors are given: as `copy.deepcopy`, in a fraction of its time."""

from __future__ import annotations

import copy
import copyreg
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from topiarist.errors import InputError
from topiarist.held import held_tensors

_ATOMIC = frozenset({type(None), bool, int, float, complex, str, bytes, type})
_MAKING = ("__deepcopy__", "__new__", "__reduce_ex__", "__reduce__", "__getnewargs__", "__getnewargs_ex__")
_CONTAINERS = frozenset({dict, OrderedDict, list, set})
_MOST_NAMES = 1 << 20  # beside the first ones; in a circle there is no end of them
_HELD = ("_parameters", "_buffers", "_modules")
_HOOKS = [(n, type(v)) for n, v in vars(nn.Module()).items() if type(v) in _CONTAINERS and n not in _HELD]
_SEEN = frozenset(name for name, _ in _HOOKS)


class UncopiedError(InputError):
    """The model cannot be copied."""


def structural_copy(model: nn.Module, tensors: Mapping[int, Any] | None = None) -> nn.Module:
    """A copy of ``model`` whose modules are its own and whose tensors are the model's, or ``tensors`` by the ids of all
    that `model_tensors` yields.

    Raises:
        UncopiedError: the model cannot be copied.
    """
    parts = [module for _, module in named_modules(model)]
    if tensors is None:
        held = [(*m._parameters.values(), *m._buffers.values(), *held_tensors(m).values()) for m in parts]
        tensors = {id(tensor): tensor for own in held for tensor in own if tensor is not None}
    memo: dict[int, Any] = dict(tensors)
    try:
        with _disable_current_modes():  # a fake tensor is no copy of one that a list holds
            return _copy(model, parts, memo)
    except Exception as error:
        raise UncopiedError(
            f"the model cannot be copied ({error}); topiarist works on a copy, so copy.deepcopy(model) must work"
        ) from error


def _copy(model: nn.Module, parts: list[nn.Module], memo: dict[int, Any]) -> nn.Module:
    plain = {kind for kind in set(map(type, parts)) if _is_plain(kind)}
    modules = [m for m in parts if type(m) in plain and id(m) not in memo]
    memo.update((id(module), type(module).__new__(type(module))) for module in modules)
    for module in reversed(modules):  # what a module holds is complete before the module is
        state = module.__getstate__() if hasattr(module, "__getstate__") else module.__dict__  # type: ignore[no-untyped-call]
        copied = dict(state)
        for name, kind in _HOOKS:  # none, as mostly
            if name in copied and (copied[name] or type(copied[name]) is not kind):
                copied[name] = _copied(copied[name], memo)
            elif name in copied:
                copied[name] = kind()
        for name in copied.keys() - _SEEN:
            if type(copied[name]) not in _ATOMIC:
                copied[name] = _copied_of(name, copied[name], memo)
        if type(module).__setstate__ is nn.Module.__setstate__:  # which adds nothing to what is complete
            memo[id(module)].__dict__.update(copied)
        else:
            memo[id(module)].__setstate__(copied)
    return copy.deepcopy(model, memo)


def _is_plain(kind: type[nn.Module]) -> bool:
    """Whether `copy.deepcopy` makes a new object of this class and gives it a copy of the state, as for any module."""
    return (
        all(getattr(kind, name, None) is getattr(nn.Module, name, None) for name in _MAKING)
        and kind not in copyreg.dispatch_table
        and not copyreg._slotnames(kind)  # type: ignore[attr-defined]
    )


def _copied_of(name: str, value: Any, memo: dict[int, Any]) -> Any:
    """A copy of one attribute of a module."""
    if name in _HELD and type(value) is dict:
        return {key: memo[id(v)] if id(v) in memo else _copied(v, memo) for key, v in value.items()}
    return _copied(value, memo)


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """What `copy.deepcopy` returns; the commonest things that modules hold are dealt with here."""
    kind = type(value)
    if kind in _ATOMIC or (kind is tuple and _ATOMIC.issuperset(map(type, value))):
        return value
    known = memo.get(id(value))
    if known is not None:
        return known
    if kind is dict or (kind in _CONTAINERS and not value):
        made: Any = kind()
        memo[id(value)] = made
        if value:
            made.update((_copied(key, memo), _copied(item, memo)) for key, item in value.items())
        return made
    return copy.deepcopy(value, memo)


def named_modules(model: nn.Module, remove_duplicate: bool = True) -> list[tuple[str, nn.Module]]:
    """What `nn.Module.named_modules` yields, without its generators in generators, one for each level.

    Example:
        >>> [name for name, _ in named_modules(nn.Sequential(nn.Sequential(nn.ReLU()), nn.ReLU()))]
        ['', '0', '0.0', '1']
    """
    found: list[tuple[str, nn.Module]] = []
    seen: set[int] = set()
    left = [("", model)]
    while left:
        name, module = left.pop()
        if id(module) in seen:
            if remove_duplicate:
                continue
            if len(found) - len(seen) > _MOST_NAMES:
                raise RecursionError("a module holds itself")
        seen.add(id(module))
        found.append((name, module))
        parts = module._modules
        if parts:
            prefix = f"{name}." if name else ""
            left.extend([(prefix + key, part) for key, part in reversed(parts.items()) if part is not None])
    return found


def model_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor, str]]:
    """Every tensor a model holds: (dotted name, tensor, "parameter", "buffer" or "attribute"); tied ones twice.

    Attributes are looked into (`topiarist.held`): of a list of tensors, ``self.tables``, the first is ``tables[0]``;
    parameters and buffers that a list holds as well are not named again.
    """
    modules = [(f"{name}." if name else "", module) for name, module in named_modules(model, remove_duplicate=False)]
    for kind, place in (("parameter", "_parameters"), ("buffer", "_buffers")):
        for prefix, module in modules:
            held = module.__dict__[place].items()
            yield from ((prefix + name, tensor, kind) for name, tensor in held if tensor is not None)
    registered = {id(t) for _, m in modules for held in (m._parameters, m._buffers) for t in held.values()}
    seen: set[int] = set()
    inside: set[int] = set()
    for prefix, module in modules:
        if id(module) in seen:
            continue
        seen.add(id(module))
        for path, tensor in held_tensors(module, inside).items():
            if path in module.__dict__ or id(tensor) not in registered:
                yield prefix + path, tensor, "attribute"
