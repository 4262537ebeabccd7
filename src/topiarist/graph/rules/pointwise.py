"""Pointwise operators: equal dimensions are unified; whether a zeroed index stays zero depends on the function."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from topiarist.graph.rules import named, rule

if TYPE_CHECKING:
    from topiarist.graph.axis import Axis
    from topiarist.graph.trace import Trace
    from topiarist.graph.tracked import Tracked

aten = torch.ops.aten


def pointwise(trace: Trace, out: Tensor, operands: Sequence[Any], operator: str, keeps_zero: bool | str) -> None:
    """Unify the operands' dimensions by broadcasting and put the result.

    ``keeps_zero``: ``"all"`` (zero where every operand is: sums), ``"any"`` (where one is: products), ``"first"``
    (where the first is: quotients), or a fixed answer.
    """
    tensors = [x for x in operands if isinstance(x, Tensor)]
    if keeps_zero == "all" and any(isinstance(x, (int, float)) and x != 0 for x in operands):
        keeps_zero = False
    known = [trace[t] for t in tensors]
    dims = range(out.dim(), 0, -1)
    axes = known[0].axes if len(known) == 1 else [_unified(trace, known, back, operator) for back in dims]
    zeros = [_zero([_flag(trace, k, back) for k in known], keeps_zero) for back in dims]
    sources = {k.source for t, k in zip(tensors, known, strict=True) if k.source and t.shape == out.shape}
    trace.put(out, axes, zeros, source=sources.pop() if len(sources) == 1 else None)


def _unified(trace: Trace, known: Sequence[Tracked], back: int, operator: str) -> Axis:
    """The axis that broadcasting gives the dimension ``back`` from the last."""
    result = trace.graph.one
    for tracked in known:
        axes = tracked.axes
        if back <= len(axes) and trace.graph.find(axes[-back]).size != 1:
            result = axes[-back] if result is trace.graph.one else trace.unify(result, axes[-back], operator)
    return result


def _flag(trace: Trace, tracked: Tracked, back: int) -> bool | None:
    """Whether a tensor is zero at a zeroed index of that dimension; None where it is broadcast along it."""
    if back > len(tracked.axes) or trace.graph.find(tracked.axes[-back]).size == 1:
        return None
    return tracked.zero[-back]


def _zero(flags: Sequence[bool | None], keeps_zero: bool | str) -> bool:
    """The flag of one dimension; None stands for an operand that is broadcast along it and stays as it is."""
    if isinstance(keeps_zero, bool):
        return keeps_zero and all(flag is not False for flag in flags)
    if keeps_zero == "any":
        return any(flag is True for flag in flags)
    if keeps_zero == "first":
        return bool(flags) and flags[0] is True
    return all(flag is True for flag in flags)


KEEPS_ZERO: dict[str, bool | str] = {}  # by operator, in the words of `pointwise`; a test holds it against torch


def _register(keeps_zero: bool | str, *names: str) -> None:
    for name in names:
        KEEPS_ZERO[name] = keeps_zero
        operators = named(name, name + "_")
        rule(*operators)(_make(name, keeps_zero))


def _make(name: str, keeps_zero: bool | str) -> Callable[..., None]:
    def run(trace: Trace, out: Any, *args: Any, **kwargs: Any) -> None:
        operands = [*args, *(v for v in kwargs.values() if isinstance(v, Tensor))]
        if name in _NO_VALUE_AT_ZERO:
            undefined_at_zero(trace, operands[-1], name)
        for tensor in (out,) if isinstance(out, Tensor) else out:
            pointwise(trace, tensor, operands, name, keeps_zero)
            for scale in args if name == "mul" and tensor.dim() > 1 else ():
                if isinstance(scale, Tensor):
                    trace.scaled(scale)
            if name in _UNIFORM or (name in _SAME_VALUES and trace[args[0]].is_uniform):
                trace.put(tensor, trace[tensor].axes, trace[tensor].zero, is_uniform=True)

    return run


_UNIFORM = ("zeros_like", "ones_like", "full_like")
_SAME_VALUES = ("alias", "clone", "detach", "_to_copy")


# of the last operand: infinite or undefined where it is zero, so that not even a weight of zero takes it away
_NO_VALUE_AT_ZERO = {
    "log", "log2", "log10", "logit", "reciprocal", "rsqrt", "digamma", "lgamma", "div", "fmod", "remainder",
    "floor_divide",
}  # fmt: skip


def undefined_at_zero(trace: Trace, operand: Any, operator: str) -> None:
    """Mark the axes along which ``operand`` is zero once an index is zeroed: removing it cannot equal zeroing it."""
    if isinstance(operand, Tensor):
        tracked = trace[operand]
        for axis, zero in zip(tracked.axes, tracked.zero, strict=True):
            if zero and trace.graph.find(axis).size != 1:
                trace.inexact(axis, f"{operator}, which has no value at zero,")


# f(0) = 0: a zeroed index stays zero
_register(
    True, "abs", "alias", "asinh", "atan", "bernoulli", "ceil", "celu", "clone", "contiguous", "detach", "dropout",
    "elu", "erf", "expm1", "floor", "frac", "gelu", "hardswish", "leaky_relu", "lift", "lift_fresh",
    "lift_fresh_copy", "log1p", "mish", "nan_to_num", "native_dropout", "neg", "positive", "relu", "relu6", "round",
    "selu", "sgn", "sign", "silu", "sin", "sinh", "sqrt", "square", "tan", "tanh", "trunc", "_to_copy", "asin", "atanh",
    "hardshrink", "softshrink", "real", "conj", "_conj", "resolve_conj", "resolve_neg", "_conj_physical",
    "conj_physical", "zeros_like",
)  # fmt: skip
# f(0) ≠ 0
_register(
    False, "acos", "acosh", "bitwise_not", "cos", "cosh", "digamma", "erfc", "exp", "exp2", "hardsigmoid", "isfinite",
    "isinf", "isnan", "lgamma", "log", "log10", "log2", "log_sigmoid_forward", "logical_not", "logit", "reciprocal",
    "rsqrt", "sigmoid", "softplus", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "fill",
    "uniform", "normal", "exponential", "random", "atan2", "angle",
)  # fmt: skip
_register(
    "all", "add", "sub", "rsub", "lerp", "maximum", "minimum", "fmax", "fmin", "hypot", "copysign", "copy",
    "bitwise_or", "logical_or", "bitwise_xor", "logical_xor", "complex",
)  # fmt: skip
_register("any", "mul", "bitwise_and", "logical_and")
_register("first", "div", "fmod", "remainder", "floor_divide", "_prelu_kernel", "polar")


@rule(*named("clamp", "clamp_", "hardtanh", "hardtanh_"))
def _clamp(trace: Trace, out: Tensor, tensor: Tensor, low: Any = None, high: Any = None, **kwargs: Any) -> None:
    low, high = kwargs.get("min", low), kwargs.get("max", high)
    if low is None and high is None:
        low, high = -1, 1  # the defaults of hardtanh, which dispatch leaves out
    below = low is None or (isinstance(low, (int, float)) and low <= 0)
    above = high is None or (isinstance(high, (int, float)) and high >= 0)
    pointwise(trace, out, (tensor, low, high), "clamp", below and above)


@rule(*named("clamp_min", "clamp_min_"))
def _clamp_min(trace: Trace, out: Tensor, tensor: Tensor, low: Any) -> None:
    _clamp(trace, out, tensor, low)


@rule(*named("clamp_max", "clamp_max_"))
def _clamp_max(trace: Trace, out: Tensor, tensor: Tensor, high: Any) -> None:
    _clamp(trace, out, tensor, None, high)


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
    pointwise(trace, out, (a, b, condition), "where", False)
    pair = [x for x in (a, b) if isinstance(x, Tensor)]
    zero = all(x == 0 for x in (a, b) if isinstance(x, (int, float)))
    zeros = [zero and _zero([_flag(trace, trace[t], back) for t in pair], "all") for back in range(out.dim(), 0, -1)]
    trace.put(out, trace[out].axes, zeros)


@rule(aten.masked_fill, aten.masked_fill_)
def _masked_fill(trace: Trace, out: Tensor, tensor: Tensor, mask: Tensor, value: Any) -> None:
    zero = trace[tensor].zero
    pointwise(trace, out, (tensor, mask), "masked_fill", "first")
    keeps = isinstance(value, (int, float)) and value == 0
    trace.put(out, trace[out].axes, [z and keeps for z in (False,) * (out.dim() - len(zero)) + zero])


@rule(aten.addcmul, aten.addcmul_)
def _addcmul(trace: Trace, out: Tensor, tensor: Tensor, a: Tensor, b: Tensor, **kwargs: Any) -> None:
    pointwise(trace, out, (tensor, a, b), "addcmul", "all")


@rule(aten.addcdiv, aten.addcdiv_)
def _addcdiv(trace: Trace, out: Tensor, tensor: Tensor, a: Tensor, b: Tensor, **kwargs: Any) -> None:
    undefined_at_zero(trace, b, "addcdiv")
    pointwise(trace, out, (tensor, a, b), "addcdiv", "all")


@rule(aten.pow, aten.pow_)
def _pow(trace: Trace, out: Tensor, base: Any, exponent: Any) -> None:
    positive = isinstance(exponent, (int, float)) and exponent > 0
    if not positive:
        undefined_at_zero(trace, base, "a power")
    pointwise(trace, out, (base, exponent), "pow", positive)


@rule(aten.zero_)
def _zero_(trace: Trace, out: Tensor, tensor: Tensor) -> None:
    trace.put(out, trace[tensor].axes)
