"""What a model's constructor makes of its config: which sizes each field sets, and whether a config describes a cut.

A model that is built from one config object, ``type(model)(config)``, is built again from a copy whose integers are
`Size` objects: those that arrive in the shapes of new tensors and in attributes of modules say what the constructor
computes from which field. Said of the axes of the traced model these are constraints like any other, so that axes which
one field describes shrink by equal numbers only. What a constructor does beyond (values, attributes that are no
integers, checks of its own) is not followed but tried: the class is built from the changed config, and compared.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from topiarist.errors import InputError, nearest
from topiarist.graph import attributes
from topiarist.graph.axis import Axis
from topiarist.graph.copies import model_tensors
from topiarist.graph.sizes import (
    Attribute,
    Constraint,
    Expression,
    Size,
    Term,
    atoms_in,
    evaluate,
    expression_of,
    plain,
    source_line,
    substituted,
)
from topiarist.graph.states import random_states_kept

_FACTORIES = frozenset({torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn})
_FILLING = frozenset({  # what does nothing to a tensor without values
    "normal_", "uniform_", "trunc_normal_", "constant_", "ones_", "zeros_", "fill_", "zero_", "orthogonal_",
    "kaiming_normal_", "kaiming_uniform_", "xavier_normal_", "xavier_uniform_",
})  # fmt: skip
_LARGE = 1 << 16  # a new tensor of more entries holds no values: nothing is computed from weights


@dataclass(frozen=True)
class _Dim:
    """One dimension of a stored tensor."""

    tensor: str
    dim: int


End = str | _Dim  # the path of an integer attribute, or a dimension: what a config's fields are to say


class _Recorder(TorchFunctionMode):
    """Notes the sizes that new tensors are asked for; large ones are made without values."""

    def __init__(self, largest: float) -> None:
        super().__init__()
        self.largest = largest
        self.made: dict[int, tuple[Tensor, tuple[Expression, ...]]] = {}  # storage → tensor, what its shape was said as

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func not in _FACTORIES:
            filled = kwargs.get("tensor", args[0] if args else None)
            is_done = getattr(func, "__name__", "") in _FILLING and isinstance(filled, Tensor) and filled.is_meta
            return filled if is_done else func(*args, **kwargs)
        sizes = kwargs["size"] if "size" in kwargs else args[0] if args and isinstance(args[0], (tuple, list)) else args
        sizes = [size if isinstance(size, int) else operator.index(size) for size in sizes]
        if kwargs.get("device") is None and math.prod(map(plain, sizes)) > self.largest:
            kwargs["device"] = "meta"
        out: Tensor = func(*args, **kwargs)
        self.made[out.untyped_storage()._cdata] = (out, tuple(map(expression_of, sizes)))
        return out

    def shape_of(self, tensor: Tensor) -> tuple[Expression, ...] | None:
        """What the shape of ``tensor`` was said as, where it is a new tensor as it was made."""
        made, said = self.made.get(tensor.untyped_storage()._cdata, (None, ()))
        return said if made is not None and made.shape == tensor.shape and made.stride() == tensor.stride() else None


class _Hearing:
    """Told of sizes that the constructor compares; values it computes from them are left to the trial."""

    def __init__(self) -> None:
        self.equal: list[tuple[Expression, Expression, str]] = []

    def on_value(self, expression: Expression) -> None:
        """A value of its own: see `Blueprint.misses`."""

    def on_equal(self, left: Expression, right: Expression) -> None:
        """Equal fields, and remainders that are zero; a lone field against a number is how configs are printed."""
        if isinstance(left, Term) or not isinstance(right, int):
            self.equal.append((left, right, source_line()))


@dataclass(frozen=True)
class _Built:
    """A model fresh from its constructor: shapes of what is stored, and all else that can be compared."""

    shapes: Mapping[str, tuple[int, ...]]
    integers: Mapping[str, int]
    others: Mapping[str, Any]

    @classmethod
    def of(cls, model: nn.Module) -> _Built:
        """Read off; integers without their origin."""
        integers, stored = attributes.integer_attributes(model), _stored(model)
        others: dict[str, Any] = {p: v for p, v in attributes.plain_attributes(model).items() if p not in integers}
        others.update((name, tensor) for name, tensor, _ in model_tensors(model) if name not in stored)
        shapes = {name: tuple(tensor.shape) for name, tensor in stored.items()}
        return cls(shapes, {path: plain(number) for path, number in integers.items()}, others)


@dataclass(frozen=True, eq=False)
class Blueprint:
    """What ``type(model)`` makes of the config that the model holds as its attribute ``name``.

    ``fields`` are the integers of the config by path; ``tensors`` maps stored tensors to their shapes and ``derived``
    paths of integer attributes to their values, as computed from fields; ``equal`` are terms of fields that the
    constructor found to be zero.
    """

    model: nn.Module
    name: str
    fields: Mapping[str, int]
    tensors: Mapping[str, tuple[Expression, ...]]
    derived: Mapping[str, Expression]
    equal: Sequence[tuple[Expression, str]]
    fresh: _Built

    @property
    def title(self) -> str:
        """The constructor, as code: ``Net(config)``."""
        return f"{type(self.model).__name__}({self.name})"

    # ------------------------------------------------------------------ what it says of sizes

    def constraints(self, traced: Iterable[Constraint], axes: Mapping[str, tuple[Axis, ...]]) -> list[Constraint]:
        """Those of a trace in terms of fields, and those of the constructor; ``axes`` are those of tensors by name."""
        found = [replace(c, expression=substituted(c.expression, self.derived)) for c in traced]
        for name, said in self.tensors.items():
            ends = zip(said, axes.get(name, ()), strict=False)
            found.extend(Constraint(e, axis, f"{self.title} for {name}") for e, axis in ends if not isinstance(e, int))
        return [*found, *(Constraint(e, Axis(0), where) for e, where in self.equal)]

    def follow(self, fields: Mapping[str, int]) -> dict[str, int]:
        """The integer attributes that are others with these values of fields, the fields among them."""
        values = {path: evaluate(e, fields, _no_axis) for path, e in self.derived.items()}
        return {path: value for path, value in values.items() if value != self.fresh.integers[path]}

    # ------------------------------------------------------------------ what it makes

    def misses(self, integers: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]) -> str | None:
        """What is not so in the class built anew from a config with these fields; None where it is the model meant.

        Compared are the shapes of all that is stored (``shapes``: of those that changed), integer attributes, and
        that everything else a constructor leaves in a module is as without the change: numbers, texts, tensors that
        are not stored.
        """
        fields = {path: value for path, value in integers.items() if path in self.fields}
        try:
            built = _build(self.model, self.name, fields)[0]
        except Exception as error:  # whatever a constructor may raise
            return f"{self.title} raises {type(error).__name__}: {' '.join(str(error).split())}"
        meant = _Built(
            {name: shapes.get(name, shape) for name, shape in self.fresh.shapes.items()},
            {path: integers.get(path, number) for path, number in self.fresh.integers.items()},
            self.fresh.others,
        )
        return _difference(meant, built, self.title)


def read(model: nn.Module, name: str) -> Blueprint:
    """Read off what the constructor of ``model`` makes of its config, the attribute ``name``.

    Raises:
        InputError: the model holds no such config, is not built from it alone, or is not as built any more.

    Example:
        >>> from types import SimpleNamespace
        >>> from topiarist.graph.sizes import text
        >>> class Net(nn.Module):
        ...     def __init__(self, config):
        ...         super().__init__()
        ...         self.config = config
        ...         self.fc1, self.fc2 = nn.Linear(4, config.width), nn.Linear(2 * config.width, 2)
        >>> found = read(Net(SimpleNamespace(width=8)), "config")
        >>> [text(size) for size in found.tensors["fc1.weight"]], [text(size) for size in found.tensors["fc2.weight"]]
        (['config->width', '4'], ['2', '2 * config->width'])
    """
    found = attributes.integer_attributes(model)
    fields = {path: number for path, number in found.items() if path.startswith((f"{name}->", f"{name}["))}
    if not fields:
        held = [key for key, value in model.__dict__.items() if key in {path.partition("->")[0] for path in found}]
        raise InputError(
            f"uniform={name!r} names no attribute of {type(model).__name__} that holds a config with integers; "
            f"{nearest(name, held)}"
        )
    hearing = _Hearing()
    try:
        fresh, built, recorder = _build(
            model, name, {path: Size(number, Attribute(path), hearing) for path, number in fields.items()}
        )
    except Exception as error:  # whatever a constructor may raise
        title = f"{type(model).__name__}({name})"
        raise InputError(
            f"uniform={name!r} asks for a class that is built from its config alone, and {title} raises "
            f"{type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
    said: dict[End, Expression] = {
        path: expression_of(number) for path, number in attributes.integer_attributes(built).items()
    }
    for tensor_name, tensor in _stored(built).items():
        shape = recorder.shape_of(tensor) or tuple(tensor.shape)
        said.update((_Dim(tensor_name, dim), size) for dim, size in enumerate(shape))
    said = _corrected(model, name, fields, fresh, said)
    equal = [(Term("-", left, right), where) for left, right, where in hearing.equal]
    derived = {end: e for end, e in said.items() if isinstance(end, str) and not isinstance(e, int)}
    tensors = {n: tuple(said[_Dim(n, dim)] for dim in range(len(shape))) for n, shape in fresh.shapes.items()}
    blueprint = Blueprint(model, name, fields, tensors, derived, equal, fresh)
    own = replace(_Built.of(model), integers={path: found[path] for path in derived if path in found}, others={})
    differs = _difference(own, fresh, blueprint.title)
    if differs is not None:
        raise InputError(f"uniform={name!r} asks for a model that is as its class builds it, but {differs}")
    return blueprint


def _corrected(
    model: nn.Module, name: str, fields: Mapping[str, int], fresh: _Built, said: Mapping[End, Expression]
) -> dict[End, Expression]:
    """What is ``said`` of integers and dimensions, where it holds with each field doubled; else what would hold.

    A size that went through a float on its way (``int(width * ratio)``, ``int(width / num_heads)``) has lost its
    origin. If it doubles or halves with some fields and stays with the others, it is their product and quotient.
    """
    used = {atom.path for e in said.values() for atom in atoms_in(e) if isinstance(atom, Attribute)}
    doubled: dict[str, dict[End, int]] = {}
    for path in sorted(used):
        with contextlib.suppress(Exception):  # whatever a constructor may raise: nothing is learned then
            doubled[path] = _sizes_of(_build(model, name, {path: 2 * fields[path]})[0])
    now = _sizes_of(fresh)

    def holds(end: End, expression: Expression) -> bool:
        return evaluate(expression, fields, _no_axis) == now[end] and all(
            evaluate(expression, {**fields, path: 2 * fields[path]}, _no_axis) == sizes.get(end)
            for path, sizes in doubled.items()
            if end in sizes
        )

    result = dict(said)
    for end, expression in said.items():
        if not holds(end, expression):
            fitted = _monomial(now[end], {path: sizes.get(end, 0) for path, sizes in doubled.items()}, fields)
            result[end] = fitted if holds(end, fitted) else now[end]
    return result


def _sizes_of(built: _Built) -> dict[End, int]:
    ends: dict[End, int] = {
        _Dim(name, dim): size for name, shape in built.shapes.items() for dim, size in enumerate(shape)
    }
    ends.update(built.integers)
    return ends


def _monomial(value: int, doubled: Mapping[str, int], fields: Mapping[str, int]) -> Expression:
    """``value`` as the product of fields that it doubles with over those that it halves with, and a fraction."""
    above = [path for path, new in doubled.items() if new == 2 * value]
    below = [path for path, new in doubled.items() if 2 * new == value]
    part = Fraction(value * math.prod(fields[p] for p in below), math.prod(fields[p] for p in above))
    top = reduce(lambda e, path: Term("*", e, Attribute(path)), above, _whole(part.numerator))
    bottom = reduce(lambda e, path: Term("*", e, Attribute(path)), below, _whole(part.denominator))
    return top if bottom == 1 else Term("//", top, bottom)


def _whole(number: int) -> Expression:
    return number


# ------------------------------------------------------------------ building


def _build(model: nn.Module, name: str, fields: Mapping[str, int]) -> tuple[_Built, nn.Module, _Recorder]:
    """The class of ``model`` built from a config with these fields; on real memory where that is the only way."""
    holder = nn.Module()
    holder.__dict__[name] = model.__dict__[name]
    attributes.update(holder, fields)
    for largest in (_LARGE, float("inf")):
        recorder = _Recorder(largest)
        try:
            with random_states_kept(model), torch.device("cpu"), recorder:
                torch.manual_seed(0)
                built = type(model)(_again(holder.__dict__[name]))
            break
        except Exception:
            if largest != _LARGE:
                raise
    return _Built.of(built), built, recorder


def _again(config: Any) -> Any:
    """The config as it comes back from a file, checked by its own class on the way; a copy where that says nothing."""
    if hasattr(config, "to_dict") and hasattr(type(config), "from_dict"):
        return type(config).from_dict(config.to_dict())
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return dataclasses.replace(config)
    return copy.copy(config)


def _stored(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if isinstance(tensor, Tensor)}


# ------------------------------------------------------------------ comparing


def _difference(meant: _Built, built: _Built, title: str) -> str | None:
    """The first thing in which two models differ, in words."""
    for name, shape in meant.shapes.items():
        if built.shapes.get(name) != shape:
            made = f"of shape {built.shapes[name]}" if name in built.shapes else "nowhere"
            return f"{title} makes {name} {made}, it is of shape {shape}"
    for name in built.shapes:
        if name not in meant.shapes:
            return f"{title} makes {name}, which is not there"
    for path, number in meant.integers.items():
        if built.integers.get(path) != number:
            return f"{title} sets {path} to {built.integers.get(path)}, it is {number}"
    for path, value in meant.others.items():
        if path not in built.others or not _same(value, built.others[path]):
            return f"{title} computes {path} from it"
    return None


def _same(a: Any, b: Any) -> bool:
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return type(a) is type(b) and bool(a == b or (a != a and b != b))
    if a.shape != b.shape or a.is_meta or b.is_meta:
        return a.shape == b.shape
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


def _no_axis(axis: Axis) -> int:
    raise AssertionError("what a constructor computes is in terms of fields")
