"""Which arguments of torch's functions are sizes: what arrives in them is tied to the axis it describes.

One small function per family, called after the function itself with the trace, its result and its arguments. Functions
not listed take their sizes from the shapes of their operands, which follow by themselves when an axis shrinks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from topiarist.graph.axis import Axis
from topiarist.graph.rules.shape import same_dims, smaller_strides
from topiarist.graph.sizes import Size, Term, plain

if TYPE_CHECKING:
    from topiarist.graph.trace import Trace

SIZE_ARGUMENTS: dict[Any, Callable[..., None]] = {}


def _sizes_of(*functions: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def register(handler: Callable[..., None]) -> Callable[..., None]:
        SIZE_ARGUMENTS.update(dict.fromkeys(functions, handler))
        return handler

    return register


def _tie_all(trace: Trace, sizes: Sequence[Any], axes: Sequence[Axis]) -> None:
    for size, axis in zip(sizes, axes, strict=False):
        if isinstance(size, Tensor):
            trace.pin(axis, "its size is computed from values", "computed")
        elif isinstance(size, int) and size != -1:
            trace.sized(size, axis)


def _tie_new(trace: Trace, sizes: Sequence[Any], axes: Sequence[Axis]) -> None:
    """Of a new tensor: a dimension as long as an axis is that axis."""
    for size, axis in zip(sizes, axes, strict=False):
        if isinstance(size, Size) and isinstance(size.expression, Axis):
            trace.unify(axis, size.expression, "a new tensor")
        else:
            _tie_all(trace, [size], [axis])


def _flat(sizes: Sequence[Any]) -> Sequence[Any]:
    return sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes


@_sizes_of(
    torch.Tensor.view,
    torch.Tensor.reshape,
    torch.Tensor.expand,
    torch.Tensor.broadcast_to,
)
def _shape_of_method(trace: Trace, out: Tensor, tensor: Tensor, *sizes: Any, **kwargs: Any) -> None:
    sizes = (*sizes, *(kwargs[k] for k in ("size", "shape") if k in kwargs))
    if sizes and not isinstance(sizes[0], torch.dtype):
        _tie_all(trace, _flat(sizes[:1] if isinstance(sizes[0], (tuple, list)) else sizes), trace[out].axes)


@_sizes_of(torch.Tensor.expand_as)
def _expand_as(trace: Trace, out: Tensor, tensor: Tensor, other: Tensor) -> None:
    for axis, same in zip(trace[out].axes, trace.axes_of(other), strict=True):
        trace.unify(axis, same, "the shape of another tensor")


@_sizes_of(torch.Tensor.view_as, torch.Tensor.reshape_as)
def _shape_of_other(trace: Trace, out: Tensor, tensor: Tensor, other: Tensor) -> None:
    for axis, same in zip(trace[out].axes, trace.axes_of(other), strict=True):
        if trace.graph.find(axis) is not trace.graph.find(same):  # of one size, but not index by index
            trace.tie(same, axis)


@_sizes_of(torch.reshape, torch.broadcast_to)
def _shape_of_function(trace: Trace, out: Tensor, tensor: Tensor, shape: Any) -> None:
    _tie_all(trace, shape, trace[out].axes)


@_sizes_of(torch.zeros, torch.ones, torch.empty, torch.full, torch.rand, torch.randn)
def _shape_of_factory(trace: Trace, out: Tensor, *sizes: Any, **kwargs: Any) -> None:
    sizes = sizes or (kwargs.get("size", ()),)
    _tie_new(trace, _flat(sizes[:1] if isinstance(sizes[0], (tuple, list)) else sizes), trace[out].axes)


@_sizes_of(torch.Tensor.new_zeros, torch.Tensor.new_ones, torch.Tensor.new_empty, torch.Tensor.new_full)
def _shape_of_new(trace: Trace, out: Tensor, tensor: Tensor, *sizes: Any, **kwargs: Any) -> None:
    _shape_of_factory(trace, out, *sizes, **kwargs)


@_sizes_of(torch.Tensor.as_strided, torch.as_strided)
def _as_strided(trace: Trace, out: Tensor, tensor: Tensor, size: Any, stride: Any, *_: Any, **__: Any) -> None:
    dims, closer = same_dims(tensor, out), smaller_strides(tensor)
    if dims is None or closer is None:
        return
    axes, whole = trace[out].axes, trace[tensor].axes
    _tie_all(trace, size, axes)
    changed = min((tensor.stride(d) for d in set(range(tensor.dim())) - set(dims) if tensor.shape[d] != 1), default=1)
    block = trace.graph.product([axis for d, axis in enumerate(whole) if 0 < tensor.stride(d) < changed])
    for axis, d, step in zip(axes, dims, stride, strict=True):
        if trace.graph.find(axis).size == 1 or not isinstance(step, int):
            continue
        if d is None:  # so many blocks of what lies closer together
            blocks = trace.pinned([plain(step) // trace.graph.find(block).size], "windows are so far apart")
            trace.sized(step, trace.graph.product([*blocks, block]))
        else:
            trace.sized(step, trace.graph.product([whole[other] for other in closer[d]]))


@_sizes_of(torch.Tensor.unflatten, torch.unflatten)
def _unflatten(trace: Trace, out: Tensor, tensor: Tensor, dim: int, sizes: Sequence[int]) -> None:
    _tie_all(trace, sizes, trace[out].axes[dim % tensor.dim() :])


@_sizes_of(torch.Tensor.repeat)
def _repeat(trace: Trace, out: Tensor, tensor: Tensor, *repeats: Any, **kwargs: Any) -> None:
    times = _flat(repeats or (kwargs["repeats"],))
    shape = (*[1] * (len(times) - tensor.dim()), *tensor.shape)
    for number, size, axis in zip(times, shape, trace[out].axes, strict=True):
        trace.sized(number, trace.graph.split(axis, [plain(number), size], "a repetition")[0])


@_sizes_of(torch.Tensor.repeat_interleave, torch.repeat_interleave)
def _repeat_interleave(trace: Trace, out: Tensor, tensor: Tensor, repeats: Any, dim: int, **_: Any) -> None:
    size = tensor.shape[dim]
    trace.sized(repeats, trace.graph.split(trace[out].axes[dim], [size, plain(repeats)], "a repetition")[1])


@_sizes_of(torch.Tensor.split, torch.split, torch.Tensor.split_with_sizes, torch.split_with_sizes)
def _split(trace: Trace, out: Sequence[Tensor], tensor: Tensor, *args: Any, dim: int = 0, **kwargs: Any) -> None:
    sizes, dim = (*args, *kwargs.values(), dim)[:2]
    parts = [trace[part].axes[dim] for part in out]
    if not isinstance(sizes, (tuple, list)):
        if out[-1].shape[dim] != plain(sizes):
            trace.pin(trace[tensor].axes[dim], "it is divided into parts with a remainder", "division")
        sizes = [sizes] * len(out)
    _tie_all(trace, sizes, parts)


@_sizes_of(torch.Tensor.tensor_split, torch.tensor_split)
def _tensor_split(trace: Trace, out: Sequence[Tensor], tensor: Tensor, *args: Any, dim: int = 0, **kwargs: Any) -> None:
    places, dim = (*args, *kwargs.values(), dim)[:2]  # called sections, indices, and more
    _chunk(trace, out, tensor, places, dim)


@_sizes_of(torch.Tensor.chunk, torch.chunk)
def _chunk(trace: Trace, out: Sequence[Tensor], tensor: Tensor, chunks: Any, dim: int = 0) -> None:
    axis = trace[tensor].axes[dim]
    if not isinstance(chunks, int):
        trace.pin(axis, "it is divided at fixed places", "division")
    elif len({part.shape[dim] for part in out}) > 1:
        trace.pin(axis, "it is divided into parts with a remainder", "division")
    for part in out:
        trace.tie(Term("//", axis, len(out)), trace[part].axes[dim])


@_sizes_of(torch.Tensor.narrow, torch.narrow)
def _narrow(trace: Trace, out: Tensor, tensor: Tensor, dim: int, start: int, length: int) -> None:
    if isinstance(start, Tensor) or isinstance(length, Tensor):
        for axis in (trace[tensor].axes[dim], trace[out].axes[dim]):
            trace.pin(axis, "its size is computed from values", "computed")
        return
    before, kept, _ = _window(trace, tensor, dim, plain(start), plain(start) + plain(length))
    trace.sized(start, before)
    trace.sized(length, kept)


@_sizes_of(torch.Tensor.__getitem__, torch.Tensor.__setitem__)
def _item(trace: Trace, out: Any, tensor: Tensor, index: Any, value: Any = None) -> None:
    entries = index if isinstance(index, tuple) else (index,)
    taken = [_num_dims(entry) for entry in entries]
    dim = 0
    for entry, num in zip(entries, taken, strict=True):
        if entry is Ellipsis:
            dim += tensor.dim() - sum(taken)
        elif isinstance(entry, slice) and (entry.step is None or entry.step == 1):
            _slice(trace, tensor, dim, entry)
        dim += num


def _num_dims(entry: Any) -> int:
    """How many dimensions one entry of an index takes up."""
    if entry is None or entry is Ellipsis or isinstance(entry, bool):
        return 0
    return entry.dim() if isinstance(entry, Tensor) and entry.dtype == torch.bool else 1


def _slice(trace: Trace, tensor: Tensor, dim: int, entry: slice) -> None:
    axis = trace[tensor].axes[dim]
    size = trace.graph.find(axis).size
    start, stop, _ = entry.indices(size)
    if isinstance(entry.stop, Size) and plain(entry.stop) == size:
        trace.sized(entry.stop, axis)  # a number written in the code may end past the end, a computed one follows
    if (start, stop) == (0, size) or stop <= start:
        return
    before, kept, after = _window(trace, tensor, dim, start, stop)
    if entry.start is not None and start > 0:
        trace.sized(
            entry.start if entry.start >= 0 else -entry.start,
            before if entry.start >= 0 else trace.graph.sum([kept, after]),
        )
    if entry.stop is not None and stop < size:
        trace.sized(
            entry.stop if entry.stop >= 0 else -entry.stop,
            trace.graph.sum([before, kept]) if entry.stop >= 0 else after,
        )


def _window(trace: Trace, tensor: Tensor, dim: int, start: int, stop: int) -> list[Axis]:
    axis = trace.graph.find(trace[tensor].axes[dim])
    return trace.graph.cut(axis, [start, stop - start, axis.size - stop], "a slice")


@_sizes_of(F.pad)
def _pad(
    trace: Trace, out: Tensor, tensor: Tensor, pad: Sequence[int], mode: str = "constant", value: Any = None
) -> None:
    if mode != "constant":
        return
    for i, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        dim = tensor.dim() - 1 - i
        if isinstance(before, Tensor) or isinstance(after, Tensor):
            for axis in (trace[tensor].axes[dim], trace[out].axes[dim]):
                trace.pin(axis, "its size is computed from values", "computed")
            continue
        if before < 0 or after < 0:
            continue
        size = trace.graph.find(trace[tensor].axes[dim]).size
        parts = trace.graph.cut(trace[out].axes[dim], [plain(before), size, plain(after)], "padding")
        _tie_all(trace, [before], parts[:1] if before else [])
        _tie_all(trace, [after], parts[2:] if after else [])


@_sizes_of(F.layer_norm, F.rms_norm, torch.layer_norm, torch.rms_norm)
def _normalized_shape(
    trace: Trace, out: Tensor, tensor: Tensor, normalized_shape: Sequence[int], *_: Any, **__: Any
) -> None:
    _tie_all(trace, normalized_shape, trace[tensor].axes[-len(normalized_shape) :])


@_sizes_of(F.group_norm, torch.group_norm)
def _num_groups(trace: Trace, out: Tensor, tensor: Tensor, num_groups: int, *_: Any, **__: Any) -> None:
    _groups(trace, trace[tensor].axes[1], num_groups)


@_sizes_of(F.conv1d, F.conv2d, F.conv3d)
def _conv_groups(trace: Trace, out: Tensor, tensor: Tensor, weight: Tensor, *rest: Any, **kwargs: Any) -> None:
    _groups(trace, trace[tensor].axes[-(weight.dim() - 1)], kwargs.get("groups", rest[4] if len(rest) > 4 else 1))


@_sizes_of(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
def _transposed_groups(trace: Trace, out: Tensor, tensor: Tensor, weight: Tensor, *rest: Any, **kwargs: Any) -> None:
    _groups(trace, trace[tensor].axes[-(weight.dim() - 1)], kwargs.get("groups", rest[4] if len(rest) > 4 else 1))


def _groups(trace: Trace, channels: Axis, groups: int) -> None:
    if groups > 1:
        size = trace.graph.find(channels).size
        trace.sized(groups, trace.graph.split(channels, [plain(groups), size // plain(groups)], "groups")[0])


@_sizes_of(F.scaled_dot_product_attention)
def _default_scale(trace: Trace, out: Tensor, query: Tensor, *args: Any, **kwargs: Any) -> None:
    if kwargs.get("scale") is None and len(args) < 6:  # 1/√d, of which the queries take one root, and the keys one
        for _ in range(2):
            trace.on_value(trace.axes_of(query)[-1])
