"""What is not a call of an operator: sizes, strides and storage that a model reads, and functions written in Python."""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from topiarist.graph.rules.recurrent import recurrent_functions
from topiarist.graph.rules.shape import smaller_strides
from topiarist.graph.sizes import Size, is_of_the_model, plain

if TYPE_CHECKING:
    from topiarist.graph.trace import Trace


def _shape(trace: Trace, input: Tensor) -> torch.Size:
    return trace.shape(input)


def _size(trace: Trace, input: Tensor, dim: int | None = None) -> Any:
    shape = trace.shape(input)
    return shape if dim is None else shape[dim]


def _numel(trace: Trace, input: Tensor) -> Any:
    return math.prod(trace.shape(input))


def _stride(trace: Trace, input: Tensor, dim: int | None = None) -> Any:
    """Strides as products of the sizes of what lies closer together, where memory has no gaps."""
    steps: tuple[int, ...] = input.stride()
    closer = smaller_strides(input)
    if closer is not None:
        axes = trace.axes_of(input)
        products = [trace.graph.product([axes[d] for d in dims]) for dims in closer]
        steps = tuple(Size(s, p, trace) if p.size == s else s for s, p in zip(steps, products, strict=True))
    return steps if dim is None else steps[dim]


def _data(trace: Trace, tensor: Tensor) -> Tensor:
    known, data = trace[tensor], tensor.data
    trace.put(data, known.axes, known.zero, known.source)
    return data


def _whereabouts(getter: Callable[[Tensor], bool]) -> Callable[[Trace, Tensor], bool]:
    """Reads whether a tensor is on some device; of the model's own code, only where that will be so outside too."""

    def read(trace: Trace, tensor: Tensor) -> bool:
        if trace.is_elsewhere and is_of_the_model(sys._getframe(2)):
            raise NotImplementedError("the model asks where a tensor lies, and the meta device is not the answer")
        return getter(tensor)

    return read


def _one_hot(trace: Trace, tensor: Tensor, num_classes: int = -1) -> Tensor:
    """Of the indices of an axis, and without values: that axis, zero at the indices that are not chosen. Where there
    are more classes, those behind are never chosen."""
    ranges, num = trace.indices(tensor).ranges, plain(num_classes)
    if ranges is None or not (tensor.is_meta or isinstance(tensor, FakeTensor)) or ranges.size > num:
        trace.pin_unsettled("its size is set outside of torch's functions")
        made = torch.nn.functional.one_hot(tensor, num_classes)
        trace.function(torch.nn.functional.one_hot, None, (tensor, num_classes), {}, made)
        return made
    rest = trace.pinned([num - ranges.size] if num > ranges.size else [], "its indices are never chosen")
    over = trace.graph.sum([ranges, *rest])
    out = torch.empty((*tensor.shape, num), dtype=torch.long, device=tensor.device)
    trace.put(out, (*trace.indices(tensor).axes, over), [False] * tensor.dim() + [True])
    trace.picks.put_one_hot(out, ranges, over)
    if isinstance(num_classes, Size):
        trace.sized(num_classes, over)
    return out


def _unseen(getter: Callable[..., Any]) -> Callable[..., Any]:
    """Reads what says nothing of sizes."""
    return lambda trace, *args, **kwargs: getter(*args, **kwargs)


_WITHOUT_SIZES = (
    *(getattr(torch.Tensor, name).__get__ for name in ("ndim", "dtype", "device", "layout", "requires_grad")),
    *(torch.Tensor.dim, torch.Tensor.is_floating_point, torch.is_floating_point, torch.Tensor.get_device),
    torch._assert,
)

# What hands out sizes, or tensors behind the back of the dispatcher.
READERS: dict[Any, Callable[..., Any]] = {
    torch.Tensor.shape.__get__: _shape,  # type: ignore[attr-defined]
    torch.Tensor.data.__get__: _data,  # type: ignore[attr-defined]
    torch.Tensor.size: _size,
    torch.Tensor.stride: _stride,
    torch.Tensor.numel: _numel,
    torch.Tensor.nelement: _numel,
    torch.numel: _numel,
    torch.nn.functional.one_hot: _one_hot,
    **{
        getattr(torch.Tensor, name).__get__: _whereabouts(getattr(torch.Tensor, name).__get__)
        for name in ("is_meta", "is_cpu", "is_cuda")
    },
    **{getter: _unseen(getter) for getter in _WITHOUT_SIZES},
    **recurrent_functions(),
}

_HAND_OVER = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


def body_of(function: Any) -> Callable[..., Any] | None:
    """A torch function written in Python without its hand-over to modes: the calls in its body are seen one by one.

    Torch switches a mode off while the function that it was handed runs; `F.multi_head_attention_forward`, say, would
    reshape unseen. None for functions that are not written in Python.
    """
    if not isinstance(function, types.FunctionType) or not set(_HAND_OVER) & set(function.__code__.co_names):
        return None
    scope = {**function.__globals__, **dict.fromkeys(_HAND_OVER, lambda *_: False)}
    body = types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__, function.__closure__)
    body.__kwdefaults__ = function.__kwdefaults__
    return body
