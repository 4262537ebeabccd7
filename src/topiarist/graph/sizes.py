"""Where integers come from: sizes written in Python are followed from attributes and shapes to the calls they end in.

While a model is traced, its integer attributes and the entries of ``tensor.shape`` are `Size` objects: integers that
remember their origin through arithmetic. When one arrives in a call that fixes a size (``view``, ``pad``, ``groups=``),
the pair (expression, axis) becomes a `Constraint`. Shrinking an axis asks the constraints which attributes follow.
An integer without an origin is a literal in somebody's code and pins the axis it describes.
"""

from __future__ import annotations

import functools
import operator
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from traceback import walk_tb
from types import FrameType
from typing import Any, Protocol

import torch

from topiarist.graph.axis import Axis

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
}
_HERE = os.path.dirname(os.path.abspath(__file__))
_CALLER = os.path.join(os.path.dirname(_HERE), "inputs.py")  # calls the model: what is further out is not the model's
_PROOF = os.path.join(os.path.dirname(_HERE), "shrink", "precision.py")  # stands between the model and torch there
_SKIPPED = (os.path.dirname(torch.__file__) + os.sep, _HERE + os.sep, _CALLER, _PROOF, "<")


@dataclass(frozen=True)
class Attribute:
    """An integer that a module keeps, by its dotted path."""

    path: str


@dataclass(frozen=True, eq=False)
class Term:
    """``left operator right``, where each side is an integer, an `Attribute`, an `Axis` (its size) or a `Term`."""

    operator: str
    left: Expression
    right: Expression


Expression = int | Attribute | Axis | Term


@dataclass(frozen=True, eq=False)
class Constraint:
    """A size computed in Python must equal the size of an axis; ``where`` is the source line that says so, ``module``
    the module that ran.

    ``is_value`` marks one that became a number of its own (a scale, say) and has to stay what it is.
    """

    expression: Expression
    axis: Axis
    where: str
    module: str = ""
    is_value: bool = False


class Observer(Protocol):
    """Who is told what becomes of sizes."""

    def on_value(self, expression: Expression) -> None:
        """A size became a number of its own, whose origin cannot be followed any further."""

    def on_equal(self, left: Expression, right: Expression) -> None:
        """The code found two sizes equal, and went on accordingly."""


class Size(int):
    """An integer with an origin; behaves as the integer it is everywhere."""

    expression: Expression
    observer: Observer

    def __new__(cls, value: int, expression: Expression, observer: Observer) -> Size:
        size = int.__new__(cls, value)
        size.expression = expression
        size.observer = observer
        return size

    def _combine(self, symbol: str, left: Any, right: Any) -> Any:
        value = _OPERATORS[symbol](plain(left), plain(right))
        return Size(value, Term(symbol, expression_of(left), expression_of(right)), self.observer)

    def __neg__(self) -> Any:
        return self._combine("-", 0, self)

    def __eq__(self, other: object) -> bool:
        equal = int.__eq__(self, other)
        if equal is True and isinstance(other, int):
            self.observer.on_equal(self.expression, expression_of(other))
        return equal

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __bool__(self) -> bool:
        return self != 0

    __hash__ = int.__hash__

    def __deepcopy__(self, memo: Any) -> Size:
        return self

    def __reduce__(self) -> Any:
        return (int, (plain(self),))


def _forward(symbol: str) -> Callable[[Size, Any], Any]:
    def method(self: Size, other: Any) -> Any:
        if isinstance(other, int):
            return self._combine(symbol, self, other)
        return _OPERATORS[symbol](float(self), other) if isinstance(other, float) else NotImplemented

    return method


def _backward(symbol: str) -> Callable[[Size, Any], Any]:
    def method(self: Size, other: Any) -> Any:
        if isinstance(other, int):
            return self._combine(symbol, other, self)
        return _OPERATORS[symbol](other, float(self)) if isinstance(other, float) else NotImplemented

    return method


for _name, _symbol in {"add": "+", "sub": "-", "mul": "*", "floordiv": "//", "mod": "%"}.items():
    setattr(Size, f"__{_name}__", _forward(_symbol))
    setattr(Size, f"__r{_name}__", _backward(_symbol))


def _as_value(name: str) -> Callable[..., Any]:
    def method(self: Size, *others: Any) -> Any:
        self.observer.on_value(self.expression)
        return getattr(int, name)(plain(self), *others)

    return method


# What turns a size into a number whose origin is lost; what depends on it is no longer a mere shape.
for _name in (
    "int", "float", "round", "floor", "ceil", "trunc", "abs", "invert", "truediv", "rtruediv", "pow", "rpow", "divmod",
    "rdivmod", "lshift", "rlshift", "rshift", "rrshift", "and", "rand", "or", "ror", "xor", "rxor",
):  # fmt: skip
    setattr(Size, f"__{_name}__", _as_value(f"__{_name}__"))


_MAY_HOLD = (Size, tuple, list, dict, slice)


def plain(value: int) -> int:
    """The integer without its origin."""
    number: int = int.__index__(value)
    return number


def sizes_in(value: Any) -> Iterator[Size]:
    """The sizes among the arguments of a call, in tuples, lists, dicts and slices."""
    if isinstance(value, Size):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            if isinstance(item, _MAY_HOLD):
                yield from sizes_in(item)
    elif isinstance(value, dict):
        yield from sizes_in(list(value.values()))
    elif isinstance(value, slice):
        yield from sizes_in([value.start, value.stop, value.step])


def expression_of(value: int) -> Expression:
    """The origin of an integer; a plain integer is its own."""
    return value.expression if isinstance(value, Size) else plain(value)


def text(expression: Expression) -> str:
    """An expression as code, with the sizes of axes as numbers."""
    if isinstance(expression, Term):
        return f"{text(expression.left)} {expression.operator} {text(expression.right)}"
    if isinstance(expression, Attribute):
        return expression.path
    return f"size {expression.size}" if isinstance(expression, Axis) else str(expression)


def substituted(expression: Expression, values: Mapping[str, Expression]) -> Expression:
    """The expression with others in place of some attributes, by path."""
    if isinstance(expression, Term):
        left, right = substituted(expression.left, values), substituted(expression.right, values)
        return Term(expression.operator, left, right)
    return values.get(expression.path, expression) if isinstance(expression, Attribute) else expression


def atoms_in(expression: Expression) -> Iterator[int | Attribute | Axis]:
    """Every integer, attribute and axis in ``expression``."""
    if isinstance(expression, Term):
        yield from atoms_in(expression.left)
        yield from atoms_in(expression.right)
    else:
        yield expression


def paths_in(expression: Expression) -> Iterator[str]:
    """The paths of the attributes in an expression."""
    return (atom.path for atom in atoms_in(expression) if isinstance(atom, Attribute))


def evaluate(expression: Expression, attributes: Mapping[str, int], measure: Callable[[Axis], int]) -> int:
    """The value of ``expression`` under new attributes and axis sizes."""
    if isinstance(expression, Attribute):
        return attributes[expression.path]
    if isinstance(expression, Axis):
        return measure(expression)
    if isinstance(expression, Term):
        left = evaluate(expression.left, attributes, measure)
        right = evaluate(expression.right, attributes, measure)
        if expression.operator in ("//", "%") and right == 0:
            return -1  # no size is −1: the constraint is reported as not met
        value: int = _OPERATORS[expression.operator](left, right)
        return value
    return expression


def solve(
    expression: Expression,
    target: int,
    unknown: Callable[[int | Attribute | Axis], bool],
    attributes: Mapping[str, int],
    measure: Callable[[Axis], int],
) -> int | None:
    """The value of the one unknown atom that makes ``expression`` equal ``target``, or None where none does.

    ``unknown`` must be true of exactly one atom, reached through ``+ − * //`` only.
    """
    if not isinstance(expression, Term):
        return target if unknown(expression) else None
    in_left = any(map(unknown, atoms_in(expression.left)))
    if in_left == any(map(unknown, atoms_in(expression.right))):
        return None
    side, other = (expression.left, expression.right) if in_left else (expression.right, expression.left)
    inner = _invert(expression.operator, target, evaluate(other, attributes, measure), in_left)
    return None if inner is None else solve(side, inner, unknown, attributes, measure)


def _invert(symbol: str, target: int, known: int, unknown_left: bool) -> int | None:
    """x such that ``x symbol known == target`` (or ``known symbol x == target``), where it is unique enough."""
    if symbol == "+":
        return target - known
    if symbol == "-":
        return target + known if unknown_left else known - target
    if symbol == "*":
        return target // known if known and target % known == 0 else None
    if symbol == "//":
        if unknown_left:
            return target * known
        return known // target if target and known // (known // target or 1) == target else None
    return None


@functools.cache
def _is_skipped(file: str) -> bool:
    return file.startswith(_SKIPPED)


def source_line() -> str:
    """The innermost line of the model's own code on the stack, as ``folder/file.py:line``; empty where there is none,
    as in a plain ``nn.Sequential``."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == _CALLER:
            break
        if is_of_the_model(frame):
            return _written(frame, frame.f_lineno)
        frame = frame.f_back  # type: ignore[assignment]
    return ""


def line_of(error: BaseException) -> str:
    """The innermost line of the model's own code that an error came through, likewise."""
    lines = [_written(frame, line) for frame, line in walk_tb(error.__traceback__) if is_of_the_model(frame)]
    return lines[-1] if lines else ""


def is_of_the_model(frame: FrameType) -> bool:
    """Whether neither torch's code runs in a frame nor that of the trace."""
    return not _is_skipped(frame.f_code.co_filename)


def _written(frame: FrameType, line: int) -> str:
    return "/".join(frame.f_code.co_filename.split(os.sep)[-2:]) + f":{line}"
