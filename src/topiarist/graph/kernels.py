"""What operators return on the meta device, remembered: torch computes much of it in Python, anew for every layer.

Networks repeat themselves, and one mode repeats the other. An operator that was seen before, with operands of the same
shapes, strides and dtypes, returns tensors like those it returned then: its kernel need not run again. What is
pointwise on contiguous operands of one shape returns the like for every shape, and is asked on the CPU, of one number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from topiarist.graph.shapes import SHAPES, Made

Key = tuple[Any, ...]
_META = torch.device("meta")
_FIRST = "the first operand, written into"
_UNKNOWN = object()


class Kernels:
    """Calls operators; on meta tensors, a kernel runs once for all calls that are alike.

    Example:
        >>> kernels, x = Kernels(), torch.empty(2, 3, device="meta")
        >>> kernels(torch.ops.aten.relu.default, (x,), {}).shape, kernels(torch.ops.aten.relu.default, (x,), {}).shape
        (torch.Size([2, 3]), torch.Size([2, 3]))
        >>> kernels.num_run
        1
    """

    def __init__(self) -> None:
        self.num_run = 0  # kernels that did run and whose results are remembered
        self._operators: dict[int, _Operator] = {}  # by id: torch hashes them in Python

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What ``func`` returns."""
        out, key = self._remembered(func, args, kwargs)
        if key is None:
            return func(*args, **kwargs) if out is _UNKNOWN else out
        self.num_run += 1
        known, make_key = self._operators[id(func)].known, self._operators[id(func)].make_key
        if key[0] is _ANY_SHAPE and (like := _of_one_number(func, args)) is not None:
            known[key] = like
            return _again(like, args)
        out = func(*args, **kwargs)
        if make_key(args, kwargs) == key:  # else it has changed the shape of what it was given
            known[key] = _FIRST if args and out is args[0] else _likeness(out)
        return out

    def first(self, func: Any, args: tuple[Any, ...]) -> Tensor | None:
        """The first that ``func`` returns, where no kernel has to run for it; else None."""
        out, _ = self._remembered(func, args, {}, alone=True)
        return out if isinstance(out, Tensor) else None

    def _remembered(
        self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], alone: bool = False
    ) -> tuple[Any, Key | None]:
        """What ``func`` returns by formula or from memory, or `_UNKNOWN` with the key to remember it by, if any;
        ``alone`` stands for: the first of it is enough."""
        operator = self._operators.get(id(func))
        if operator is None:
            single = len(func._schema.returns) == 1
            operator = self._operators[id(func)] = _Operator(func, SHAPES.get(func), single, _key_of(func), {})
        if operator.formula is not None and not kwargs:
            made = operator.formula(*args)
            if made is not None:
                return _tensors(made[:1] if alone else made, alone or operator.returns_one), None
        key = operator.make_key(args, kwargs)
        found = _UNKNOWN if key is None else operator.known.get(key, _UNKNOWN)
        return (_UNKNOWN, key) if found is _UNKNOWN else (_again(found, args), None)


class _Operator(NamedTuple):
    """What is known of one operator; ``known`` are its results by what was asked."""

    func: Any
    formula: Callable[..., list[Made] | None] | None
    returns_one: bool
    make_key: Callable[[Sequence[Any], Any], Key | None]
    known: dict[Key, Any]


# ---------------------------------------------------------------------------------------------------------------- keys

_ANY_SHAPE = "any shape"


def _key_of(func: Any) -> Callable[[Sequence[Any], Any], Key | None]:
    """What tells two calls of ``func`` apart.

    Left alone are views, which share their storage, what returns other things than tensors, searches, of which some
    return values (`topiarist.graph.assumed`), and what writes into tensors, except operators that return the first
    operand with new values.
    """
    schema, tags = func._schema, func.tags
    if func is torch.ops.aten.nonzero.default:
        return _nothing
    if torch.Tag.inplace in tags and torch.Tag.inplace_view not in tags and len(schema.returns) == 1:
        return _pointwise if torch.Tag.pointwise in tags else _in_place
    if schema.is_mutable or any(r.alias_info is not None or "Tensor" not in str(r.type) for r in schema.returns):
        return _nothing
    return _pointwise if torch.Tag.pointwise in tags else _exact


def _nothing(args: Sequence[Any], kwargs: Any) -> None:
    return None


def _exact(args: Sequence[Any], kwargs: Any) -> Key | None:
    """Shapes, strides and dtypes of the tensors, if any, and all else as it is; None off the meta device."""
    key: list[Any] = []
    tensors = 0
    for value in (*args, *kwargs.items()) if kwargs else args:
        if isinstance(value, Tensor):
            if not value.is_meta:
                return None
            tensors += 1
            key.append((value.shape, value.stride(), value.dtype))
        elif isinstance(value, (list, tuple)):
            inner = _exact(value, None)
            if inner is None and any(isinstance(v, Tensor) for v in value):
                return None
            tensors += inner is not None
            key.append(inner or tuple((type(v), v) for v in value))
        else:
            key.append((type(value), value))
    return tuple(key) if tensors or (kwargs and kwargs.get("device") == _META) else None


def _pointwise(args: Sequence[Any], kwargs: Any) -> Key | None:
    """For contiguous operands of one shape the shape does not matter."""
    key: list[Any] = [_ANY_SHAPE]
    shape: Any = None
    for value in () if kwargs else args:
        if isinstance(value, Tensor):
            if not value.is_meta:
                return None
            if not value.is_contiguous() or (shape is not None and value.shape != shape):
                break
            shape = value.shape
            key.append(value.dtype)
        elif isinstance(value, (list, tuple)):
            break
        else:
            key.append((type(value), value))
    else:
        if shape:
            return (*key, len(shape))
    return _exact(args, kwargs)


def _in_place(args: Sequence[Any], kwargs: Any) -> Key | None:
    """What writes into its only operand returns that, whatever its shape."""
    alone = not kwargs and not any(isinstance(value, (Tensor, list, tuple)) for value in args[1:])
    return _pointwise(args, kwargs) if alone else _exact(args, kwargs)


# ------------------------------------------------------------------------------------------------------------- results


class _Like(NamedTuple):
    """A tensor of a dtype with this shape and these strides; contiguous and of the shape of the first operand where
    there are none."""

    dtype: torch.dtype
    shape: torch.Size | None = None
    stride: tuple[int, ...] = ()


def _likeness(out: Any) -> Any:
    """What it takes to make tensors like ``out``."""
    if isinstance(out, Tensor):
        return _Like(out.dtype, out.shape, out.stride())
    return None if out is None else type(out)([_likeness(each) for each in out])


def _of_one_number(func: Any, args: Sequence[Any]) -> Any:
    """What a pointwise operator makes of tensors of one number; None where the CPU does not know it."""
    try:
        small = [torch.ones((1,) * v.dim(), dtype=v.dtype) if isinstance(v, Tensor) else v for v in args]
        out = func(*small)
    except (RuntimeError, TypeError):
        return None
    if out is small[0]:
        return _FIRST
    return _Like(out.dtype) if isinstance(out, Tensor) and out.shape == _first(small).shape else None


def _again(found: Any, args: Sequence[Any]) -> Any:
    if found is _FIRST:
        return args[0]
    if not isinstance(found, _Like):
        return None if found is None else type(found)([_again(each, args) for each in found])
    if found.shape is not None:
        return torch.empty_strided(found.shape, found.stride, dtype=found.dtype, device=_META)
    return torch.empty(_first(args).shape, dtype=found.dtype, device=_META)


def _tensors(made: Sequence[Made], alone: bool) -> Any:
    """Contiguous tensors, one alone or several as an operator returns them."""
    tensors = tuple([torch.empty(shape, dtype=dtype, device=_META) for shape, dtype in made])
    return tensors[0] if alone else tensors


def _first(args: Sequence[Any]) -> Tensor:
    first: Tensor = args[0]
    return first if isinstance(first, Tensor) else next(value for value in args if isinstance(value, Tensor))
