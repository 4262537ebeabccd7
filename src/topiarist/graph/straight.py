"""Torch functions that come down to one operator: on the meta device that one is spoken of at once.

Torch takes a function through its own Python body, its argument parser and its dispatcher, and stops at a mode on each
of these ways; for a batch norm there are four such stops, all to say what one would. Here stands what the commonest
functions call in the end, with their signatures. They return None for calls that go another way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from topiarist.graph.sizes import plain

Call = tuple[Any, tuple[Any, ...]]  # an operator and what it is given
aten = torch.ops.aten


def _conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Call | None:  # fmt: skip
    if input.dim() != 4 or isinstance(padding, str):
        return None
    options = _pair(stride), _pair(padding), _pair(dilation)
    return aten.convolution.default, (input, weight, bias, *options, False, [0, 0], plain(groups))


def _pair(option: int | Sequence[int]) -> list[int]:
    return [plain(option)] * 2 if isinstance(option, int) else [plain(o) for o in option] * (2 // len(option))


def _batch_norm(
    input: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float, cudnn: bool
) -> Call | None:
    return aten.native_batch_norm.default, (input, weight, bias, mean, var, training, momentum, eps)


def _functional_batch_norm(
    input: Tensor, running_mean: Any, running_var: Any, weight: Any = None, bias: Any = None, training: bool = False,
    momentum: float = 0.1, eps: float = 1e-5,
) -> Call | None:  # fmt: skip
    if training:  # torch looks at the shape first
        return None
    return aten.native_batch_norm.default, (input, weight, bias, running_mean, running_var, training, momentum, eps)


def _of_one(operator: Any) -> Callable[..., Call]:
    return lambda input: (operator, (input,))


def _of_two(operator: Any) -> Callable[..., Call | None]:
    return lambda input, other: (operator, (input, other)) if isinstance(other, Tensor) else None


def _activation(operator: Any, in_place: Any) -> Callable[..., Call]:
    def straight(input: Tensor, inplace: bool = False) -> Call:
        return in_place if inplace else operator, (input,)

    return straight


STRAIGHT: dict[Any, Callable[..., Call | None]] = {
    torch.conv2d: _conv2d,
    torch.batch_norm: _batch_norm,
    F.batch_norm: _functional_batch_norm,
    **{
        getattr(F, name): _activation(getattr(aten, name).default, getattr(aten, f"{name}_").default)
        for name in ("relu", "silu", "hardswish", "hardsigmoid")
    },
    **{
        getattr(room, name): _of_one(getattr(aten, name).default)
        for room in (torch, torch.Tensor)
        for name in ("relu", "relu_", "sigmoid", "sigmoid_", "tanh")
    },
    **{
        getattr(torch._C._nn, name): _of_one(getattr(aten, name).default)
        for name in ("gelu", "hardsigmoid", "hardswish_")
    },
    **{
        getattr(room, name): _of_two(getattr(aten, name).Tensor)
        for room in (torch, torch.Tensor)
        for name in ("add", "mul")
    },
}


def straight_call(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """The operator that a call of ``function`` comes down to and its arguments; None where that is not known."""
    found = STRAIGHT.get(function)
    try:
        return None if found is None else found(*args, **kwargs)
    except (TypeError, AttributeError):  # torch says what is wrong with these arguments
        return None
