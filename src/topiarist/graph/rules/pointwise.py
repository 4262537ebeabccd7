"""Pointwise operators: equal dimensions are unified; whether a zeroed index stays zero depends on the function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from topiarist.graph.rules import named, rule

if TYPE_CHECKING:
    from topiarist.graph.trace import Trace

aten = torch.ops.aten


def pointwise(trace: Trace, out: Tensor, operands: Sequence[Any], operator: str, keeps_zero: bool | str) -> None:
    """Unify the operands' dimensions by broadcasting and put the result.

    ``keeps_zero``: ``"all"`` (zero where every operand is: sums), ``"any"`` (where one is: products), ``"first"``
    (where the first is: quotients), or a fixed answer.
    """
    tensors = [x for x in operands if isinstance(x, Tensor)]
    if keeps_zero == "all" and any(isinstance(x, (int, float)) and x != 0 for x in operands):
        keeps_zero = False
    axes, zeros = [], []
    for back in range(1, out.dim() + 1):
        axis = trace.graph.one
        flags: list[bool | None] = []
        for tensor in tensors:
            tracked = trace[tensor]
            if back > len(tracked.axes):
                flags.append(None)
                continue
            other = tracked.axes[-back]
            if trace.graph.find(other).size != 1:
                axis = other if axis is trace.graph.one else trace.unify(axis, other, operator)
                flags.append(tracked.zero[-back])
            else:
                flags.append(None)
        axes.append(axis)
        zeros.append(_zero(flags, keeps_zero))
    sources = {trace[t].source for t in tensors if t.shape == out.shape} & trace.parameters
    trace.put(out, axes[::-1], zeros[::-1], source=sources.pop() if len(sources) == 1 else None)


def _zero(flags: Sequence[bool | None], keeps_zero: bool | str) -> bool:
    """The flag of one dimension; None stands for an operand that is broadcast along it and stays as it is."""
    if isinstance(keeps_zero, bool):
        return keeps_zero and all(flag is not False for flag in flags)
    if keeps_zero == "any":
        return any(flag is True for flag in flags)
    if keeps_zero == "first":
        return bool(flags) and flags[0] is True
    return all(flag is True for flag in flags)


def _register(keeps_zero: bool | str, *names: str) -> None:
    for name in names:
        operators = named(name, name + "_")
        rule(*operators)(_make(name, keeps_zero))


def _make(name: str, keeps_zero: bool | str) -> Callable[..., None]:
    def run(trace: Trace, out: Any, *args: Any, **kwargs: Any) -> None:
        operands = [*args, *(v for v in kwargs.values() if isinstance(v, Tensor))]
        for tensor in (out,) if isinstance(out, Tensor) else out:
            pointwise(trace, tensor, operands if keeps_zero not in (True, False) else args[:1], name, keeps_zero)

    return run


# f(0) = 0: a zeroed index stays zero
_register(
    True, "abs", "alias", "asinh", "atan", "bernoulli", "ceil", "celu", "clone", "contiguous", "detach", "dropout",
    "elu", "erf", "expm1", "floor", "frac", "gelu", "hardswish", "hardtanh", "leaky_relu", "lift", "lift_fresh",
    "lift_fresh_copy", "log1p", "mish", "nan_to_num", "native_dropout", "neg", "positive", "relu", "relu6", "round",
    "selu", "sgn", "sign", "silu", "sin", "sinh", "sqrt", "square", "tan", "tanh", "trunc", "_to_copy", "asin", "atanh",
    "hardshrink", "softshrink", "real", "conj", "_conj", "angle", "view_as_real_copy", "resolve_conj", "resolve_neg",
    "_conj_physical", "conj_physical", "zeros_like",
)  # fmt: skip
# f(0) ≠ 0
_register(
    False, "acos", "acosh", "bitwise_not", "cos", "cosh", "digamma", "erfc", "exp", "exp2", "hardsigmoid", "isfinite",
    "isinf", "isnan", "lgamma", "log", "log10", "log2", "log_sigmoid_forward", "logical_not", "logit", "reciprocal",
    "rsqrt", "sigmoid", "softplus", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "fill",
    "clamp", "clamp_min", "clamp_max", "uniform", "normal", "exponential", "random",
)  # fmt: skip
_register(
    "all", "add", "sub", "rsub", "lerp", "maximum", "minimum", "fmax", "fmin", "hypot", "copysign", "copy",
    "bitwise_or", "logical_or", "bitwise_xor", "logical_xor",
)  # fmt: skip
_register("any", "mul", "bitwise_and", "logical_and")
_register("first", "div", "atan2", "fmod", "remainder", "floor_divide", "_prelu_kernel", "prelu")


@rule(
    *named(
        "eq",
        "ne",
        "lt",
        "le",
        "gt",
        "ge",
        "isclose",
    )
)
def _comparison(trace: Trace, out: Tensor, *args: Any) -> None:
    pointwise(trace, out, args, "a comparison", False)
    trace.put(out, trace[out].axes, [False] * out.dim())


@rule(aten.where, aten.where.self)
def _where(trace: Trace, out: Tensor, condition: Tensor, a: Any, b: Any) -> None:
    pointwise(trace, out, (a, b, condition), "where", "all")
    pair = [x for x in (a, b) if isinstance(x, Tensor)]
    zeros = [all(_flag(trace, x, -i) for x in pair) for i in range(out.dim(), 0, -1)]
    scalars = all(x == 0 for x in (a, b) if isinstance(x, (int, float)))
    trace.put(out, trace[out].axes, [z and scalars for z in zeros])


def _flag(trace: Trace, tensor: Tensor, back: int) -> bool:
    tracked = trace[tensor]
    return -back > len(tracked.axes) or tracked.zero[back] or tracked.axes[back] is trace.graph.one


@rule(aten.masked_fill, aten.masked_fill_)
def _masked_fill(trace: Trace, out: Tensor, tensor: Tensor, mask: Tensor, value: Any) -> None:
    zero = trace[tensor].zero
    pointwise(trace, out, (tensor, mask), "masked_fill", "first")
    keeps = isinstance(value, (int, float)) and value == 0
    trace.put(out, trace[out].axes, [z and keeps for z in (False,) * (out.dim() - len(zero)) + zero])


@rule(aten.addcmul, aten.addcmul_, aten.addcdiv, aten.addcdiv_)
def _addcmul(trace: Trace, out: Tensor, tensor: Tensor, a: Tensor, b: Tensor, **kwargs: Any) -> None:
    pointwise(trace, out, (tensor, a, b), "addcmul", "all")


@rule(aten.pow, aten.pow_)
def _pow(trace: Trace, out: Tensor, base: Any, exponent: Any) -> None:
    positive = isinstance(exponent, (int, float)) and exponent > 0
    pointwise(trace, out, (base, exponent), "pow", positive)


@rule(aten.zero_)
def _zero_(trace: Trace, out: Tensor, tensor: Tensor) -> None:
    trace.put(out, trace[tensor].axes)
