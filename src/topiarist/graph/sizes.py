"""Where integers come from: sizes written in Python are followed from attributes and shapes to the calls they end in.

While a model is traced, its integer attributes and the entries of ``tensor.shape`` are `Size` objects: integers that
remember their origin through arithmetic. When one arrives in a call that fixes a size (``view``, ``pad``, ``groups=``),
the pair (expression, axis) becomes a `Constraint`. Shrinking an axis asks the constraints which attributes follow.
An integer without an origin is a literal in somebody's code and pins the axis it describes.
"""

from __future__ import annotations

import operator
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from topiarist.graph.axis import Axis

_OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "//": operator.floordiv,
    "%": operator.mod,
}
_SKIPPED = (os.path.dirname(torch.__file__), os.path.dirname(os.path.abspath(__file__)), "<")


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
    """A size computed in Python must equal the size of an axis; ``where`` is the source line that says so."""

    expression: Expression
    axis: Axis
    where: str


class Size(int):
    """An integer with an origin; behaves as the integer it is everywhere."""

    expression: Expression
    on_value: Callable[[Expression], None]

    def __new__(cls, value: int, expression: Expression, on_value: Callable[[Expression], None]) -> Size:
        size = super().__new__(cls, value)
        size.expression = expression
        size.on_value = on_value
        return size

    def _combine(self, symbol: str, left: Any, right: Any) -> Any:
        plain_left, plain_right = int.__index__(left), int.__index__(right)
        value = _OPERATORS[symbol](plain_left, plain_right)
        return Size(value, Term(symbol, expression_of(left), expression_of(right)), self.on_value)

    def __float__(self) -> float:
        self.on_value(self.expression)  # a size that becomes a value: what depends on it is no longer a mere shape
        return float(int.__index__(self))

    def __truediv__(self, other: Any) -> Any:
        return float(self) / other

    def __rtruediv__(self, other: Any) -> Any:
        return other / float(self)

    def __pow__(self, other: Any, modulo: Any = None) -> Any:
        self.on_value(self.expression)
        return pow(int.__index__(self), other, modulo)

    def __deepcopy__(self, memo: Any) -> Size:
        return self

    def __reduce__(self) -> Any:
        return (int, (int.__index__(self),))


def _forward(symbol: str) -> Callable[[Size, Any], Any]:
    def method(self: Size, other: Any) -> Any:
        if isinstance(other, int):
            return self._combine(symbol, self, other)
        if isinstance(other, float):
            return _OPERATORS[symbol](float(self), other)  # type: ignore[arg-type]
        return NotImplemented

    return method


def _backward(symbol: str) -> Callable[[Size, Any], Any]:
    def method(self: Size, other: Any) -> Any:
        if isinstance(other, int):
            return self._combine(symbol, other, self)
        if isinstance(other, float):
            return _OPERATORS[symbol](other, float(self))  # type: ignore[arg-type]
        return NotImplemented

    return method


for _name, _symbol in {"add": "+", "sub": "-", "mul": "*", "floordiv": "//", "mod": "%"}.items():
    setattr(Size, f"__{_name}__", _forward(_symbol))
    setattr(Size, f"__r{_name}__", _backward(_symbol))


def expression_of(value: int) -> Expression:
    """The origin of an integer; a plain integer is its own."""
    return value.expression if isinstance(value, Size) else int(value)


def axes_in(expression: Expression) -> Iterable[Axis]:
    """Every axis whose size enters ``expression``."""
    if isinstance(expression, Axis):
        yield expression
    elif isinstance(expression, Term):
        yield from axes_in(expression.left)
        yield from axes_in(expression.right)


def paths_in(expression: Expression) -> Iterable[str]:
    """Every attribute that enters ``expression``."""
    if isinstance(expression, Attribute):
        yield expression.path
    elif isinstance(expression, Term):
        yield from paths_in(expression.left)
        yield from paths_in(expression.right)


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
        return _OPERATORS[expression.operator](left, right)
    return expression


def solve(
    expression: Expression, target: int, attributes: Mapping[str, int], measure: Callable[[Axis], int]
) -> tuple[str, int] | None:
    """The one attribute whose new value makes ``expression`` equal ``target``, or None where none does.

    The expression must hold exactly one attribute not in ``attributes``, reached through ``+ − * //`` only.
    """
    if isinstance(expression, Attribute):
        return expression.path, target
    if not isinstance(expression, Term):
        return None
    unknown_left = any(path not in attributes for path in paths_in(expression.left))
    unknown_right = any(path not in attributes for path in paths_in(expression.right))
    if unknown_left == unknown_right:
        return None
    known = evaluate(expression.right if unknown_left else expression.left, attributes, measure)
    inner = _invert(expression.operator, target, known, unknown_left)
    side = expression.left if unknown_left else expression.right
    return None if inner is None else solve(side, inner, attributes, measure)


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


def source_line() -> str:
    """The innermost line of the model's own code on the stack, as ``folder/file.py:line``."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith(_SKIPPED):
            return "/".join(name.split(os.sep)[-2:]) + f":{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "an unknown line"
