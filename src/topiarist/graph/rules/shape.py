"""Shape operators: reshapes split and merge products, concatenations and slices make and cut sums."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from topiarist.graph.axis import Axis
from topiarist.graph.rules import named, rule
from topiarist.graph.sizes import Term

if TYPE_CHECKING:
    from topiarist.graph.trace import Trace

aten = torch.ops.aten


@rule(
    *named(
        "view",
        "_unsafe_view",
        "reshape",
        "_reshape_alias",
        "_reshape_copy",
        "view_copy",
    )
)
def _view(trace: Trace, out: Tensor, tensor: Tensor, shape: Any, *_: Any) -> None:
    tracked = trace[tensor]
    if isinstance(shape, torch.dtype):  # the same bits under another type
        trace.put(out, tracked.axes, tracked.zero, tracked.source)
        return
    axes: list[Axis] = []
    zeros: list[bool] = []
    for old, new in _blocks(tuple(tensor.shape), tuple(out.shape)):
        block = tracked.axes[old]
        flag = all(z for z, axis in zip(tracked.zero[old], block, strict=True) if trace.graph.find(axis).size != 1)
        sizes = tuple(out.shape)[new]
        zeros.extend([flag] * len(sizes))
        if len(block) == len(sizes) == 1:
            axes.extend(block)
        elif sizes:
            axes.extend(trace.graph.split(trace.graph.product(block), sizes, "a reshape"))
    trace.put(out, axes, zeros, tracked.source)


def _blocks(old: Sequence[int], new: Sequence[int]) -> list[tuple[slice, slice]]:
    """The finest pairs of consecutive dimensions with equal numbers of elements on both sides."""
    blocks = []
    i = j = 0
    while i < len(old) or j < len(new):
        first, second = i, j
        left = right = 1
        if i < len(old):
            left, i = old[i], i + 1
        if j < len(new):
            right, j = new[j], j + 1
        while left != right:
            if (left < right and i < len(old)) or j >= len(new):
                left, i = left * old[i], i + 1
            else:
                right, j = right * new[j], j + 1
        blocks.append((slice(first, i), slice(second, j)))
    return blocks


@rule(aten.unsqueeze, aten.unsqueeze_)
def _unsqueeze(trace: Trace, out: Tensor, tensor: Tensor, dim: int) -> None:
    tracked = trace[tensor]
    axes, zeros = list(tracked.axes), list(tracked.zero)
    place = dim % out.dim()
    if len(axes) == out.dim():  # in place: the argument is the result
        axes, zeros = axes[: out.dim() - 1], zeros[: out.dim() - 1]
    axes.insert(place, trace.graph.one)
    zeros.insert(place, True)
    trace.put(out, axes, zeros, tracked.source)


@rule(aten.squeeze, aten.squeeze_)
def _squeeze(trace: Trace, out: Tensor, tensor: Tensor, dim: Any = None) -> None:
    tracked = trace[tensor]
    rank = len(tracked.axes)
    dims = range(rank) if dim is None else [d % rank for d in ((dim,) if isinstance(dim, int) else dim)]
    gone = {d for d in dims if trace.graph.find(tracked.axes[d]).size == 1} if rank else set()
    kept = [d for d in range(rank) if d not in gone]
    trace.put(out, [tracked.axes[d] for d in kept], [tracked.zero[d] for d in kept], tracked.source)


@rule(aten.permute, aten.permute_copy)
def _permute(trace: Trace, out: Tensor, tensor: Tensor, dims: Sequence[int]) -> None:
    tracked = trace[tensor]
    order = [d % max(1, len(dims)) for d in dims]
    trace.put(out, [tracked.axes[d] for d in order], [tracked.zero[d] for d in order], tracked.source)


@rule(
    *named(
        "transpose",
        "t",
        "transpose_",
        "t_",
        "numpy_T",
    )
)
def _transpose(trace: Trace, out: Tensor, tensor: Tensor, a: int = 0, b: int = 1) -> None:
    tracked = trace[tensor]
    order = list(range(len(tracked.axes)))
    if len(order) > 1:
        order[a], order[b] = order[b], order[a]
    trace.put(out, [tracked.axes[d] for d in order], [tracked.zero[d] for d in order], tracked.source)


@rule(aten.expand, aten.expand_copy, aten.broadcast_to)
def _expand(trace: Trace, out: Tensor, tensor: Tensor, shape: Any, **_: Any) -> None:
    tracked = trace[tensor]
    new = out.dim() - len(tracked.axes)
    axes = [trace.graph.leaf(size) for size in out.shape[:new]]
    zeros = [False] * new
    for size, axis, zero in zip(out.shape[new:], tracked.axes, tracked.zero, strict=True):
        stays = trace.graph.find(axis).size == size
        axes.append(axis if stays else trace.graph.leaf(size))
        zeros.append(zero and stays)
    trace.put(out, axes, zeros, tracked.source)


@rule(aten.slice, aten.slice_copy)
def _slice(
    trace: Trace, out: Tensor, tensor: Tensor, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> None:
    tracked = trace[tensor]
    dim %= tensor.dim()
    size = tensor.shape[dim]
    first, _, _ = slice(start, end, step).indices(size)
    axes = list(tracked.axes)
    if step != 1 and out.shape[dim] * step == size and first < step:  # a part of each pair, triple, …
        axes[dim], rest = trace.graph.split(axes[dim], [out.shape[dim], step], "a strided slice")
        trace.pin(rest, f"every {step}th index of it is taken")
    elif step != 1 and out.shape[dim] != size:
        trace.pin(axes[dim], f"every {step}th index of it is taken")
        axes[dim] = trace.pinned([out.shape[dim]], "it is a strided slice")[0]
    elif out.shape[dim] != size:
        axes[dim] = trace.graph.cut(axes[dim], [first, out.shape[dim], size - first - out.shape[dim]], "a slice")[1]
    trace.put(out, axes, tracked.zero, tracked.source, tracked.is_uniform)


@rule(aten.select, aten.select_copy)
def _select(trace: Trace, out: Tensor, tensor: Tensor, dim: int, index: int) -> None:
    tracked = trace[tensor]
    dim %= tensor.dim()
    pins = [] if tracked.is_uniform else [(tracked.axes[dim], "a single index of it is taken")]
    kept = [d for d in range(tensor.dim()) if d != dim]
    axes, zeros = [tracked.axes[d] for d in kept], [tracked.zero[d] for d in kept]
    taken = (tracked.axes[dim], index % tensor.shape[dim]) if pins and tracked.source is not None else None
    trace.put(out, axes, zeros, tracked.source, tracked.is_uniform, pins, taken=taken)


@rule(aten.unbind, aten.unbind_copy)
def _unbind(trace: Trace, out: Sequence[Tensor], tensor: Tensor, dim: int = 0) -> None:
    for index, part in enumerate(out):
        _select(trace, part, tensor, dim, index)


@rule(
    *named(
        "split",
        "split_with_sizes",
        "split_copy",
        "split_with_sizes_copy",
        "unsafe_split",
        "unsafe_split_with_sizes",
        "chunk",
    )
)
def _split(trace: Trace, out: Sequence[Tensor], tensor: Tensor, sizes: Any, dim: int = 0) -> None:
    tracked = trace[tensor]
    dim %= tensor.dim()
    parts = trace.graph.cut(tracked.axes[dim], [part.shape[dim] for part in out], "a split")
    for part, axis in zip(out, parts, strict=True):
        axes = [*tracked.axes[:dim], axis, *tracked.axes[dim + 1 :]]
        trace.put(part, axes, tracked.zero, tracked.source)


@rule(aten.cat)
def _cat(trace: Trace, out: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> None:
    operands = [t for t in tensors if not (t.dim() == 1 and t.numel() == 0)]  # the old "empty" that cat ignores
    dim %= out.dim()
    axes, zeros = list(trace[operands[0]].axes), list(trace[operands[0]].zero)
    for other in operands[1:]:
        tracked = trace[other]
        for d in range(out.dim()):
            zeros[d] = zeros[d] and tracked.zero[d]
            if d != dim:
                axes[d] = trace.unify(axes[d], tracked.axes[d], "cat")
    axes[dim] = trace.graph.sum([trace[t].axes[dim] for t in operands])
    trace.put(out, axes, zeros)


@rule(aten.glu)
def _glu(trace: Trace, out: Tensor, tensor: Tensor, dim: int = -1) -> None:
    tracked = trace[tensor]
    half = out.shape[dim]
    value, gate = trace.graph.cut(tracked.axes[dim], [half, half], "glu")
    axes = list(tracked.axes)
    axes[dim] = trace.unify(value, gate, "glu")
    trace.tie(Term("//", tracked.axes[dim], 2), axes[dim])
    trace.put(out, axes, tracked.zero)


@rule(*named("channel_shuffle", "native_channel_shuffle"))
def _channel_shuffle(trace: Trace, out: Tensor, tensor: Tensor, groups: int) -> None:
    tracked = trace[tensor]
    count, rest = trace.graph.split(tracked.axes[1], [groups, out.shape[1] // groups], "channel shuffle")
    trace.pin(count, "it counts the groups of a channel shuffle", "groups")
    trace.tie(Term("//", tracked.axes[1], groups), rest)
    trace.put(out, (tracked.axes[0], trace.graph.product([rest, count]), *tracked.axes[2:]), tracked.zero)


@rule(aten.stack)
def _stack(trace: Trace, out: Tensor, tensors: Sequence[Tensor], dim: int = 0) -> None:
    dim %= out.dim()
    axes, zeros = list(trace[tensors[0]].axes), list(trace[tensors[0]].zero)
    for other in tensors[1:]:
        tracked = trace[other]
        axes = [trace.unify(a, b, "stack") for a, b in zip(axes, tracked.axes, strict=True)]
        zeros = [x and y for x, y in zip(zeros, tracked.zero, strict=True)]
    axes.insert(dim, trace.pinned([len(tensors)], "it counts stacked tensors")[0])
    zeros.insert(dim, False)
    trace.put(out, axes, zeros)


@rule(aten.constant_pad_nd)
def _constant_pad(trace: Trace, out: Tensor, tensor: Tensor, pad: Sequence[int], value: float = 0) -> None:
    tracked = trace[tensor]
    axes, zeros = list(tracked.axes), list(tracked.zero)
    for i, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        dim = tensor.dim() - 1 - i
        kept = axes[dim]
        if before < 0 or after < 0:
            size = tensor.shape[dim]
            first, last = max(0, -before), max(0, -after)
            kept = trace.graph.cut(kept, [first, size - first - last, last], "a negative pad")[1]
        dead = [trace.graph.leaf(max(0, n)) for n in (before, after)]
        axes[dim] = trace.graph.sum([dead[0], kept, dead[1]])
        zeros[dim] = zeros[dim] and value == 0
    trace.put(out, axes, zeros)


@rule(aten.repeat, aten.tile)
def _repeat(trace: Trace, out: Tensor, tensor: Tensor, repeats: Sequence[int]) -> None:
    tracked = trace[tensor]
    new = out.dim() - len(tracked.axes)
    axes = [trace.graph.leaf(times) for times in repeats[:new]]
    for times, axis in zip(repeats[new:], tracked.axes, strict=True):
        axes.append(trace.graph.product([trace.graph.leaf(times), axis]))
    trace.put(out, axes, (False,) * new + tracked.zero)


@rule(aten.flip, aten.roll)
def _reorder(trace: Trace, out: Tensor, tensor: Tensor, first: Any, dims: Any = None) -> None:
    tracked = trace[tensor]
    moved = first if dims is None else dims
    for dim in (moved,) if isinstance(moved, int) else moved or range(tensor.dim()):
        trace.pin(tracked.axes[dim], "its indices change places")
    trace.put(out, tracked.axes, tracked.zero)


@rule(*named("empty", "rand", "randn", "new_empty", "empty_strided", "new_empty_strided", "randint"))
def _factory(trace: Trace, out: Tensor, *args: Any, **kwargs: Any) -> None:
    trace.put(out, [trace.graph.leaf(size) for size in out.shape], [False] * out.dim())


@rule(*named("zeros", "ones", "full", "new_zeros", "new_ones", "new_full", "scalar_tensor"))
def _uniform_factory(trace: Trace, out: Tensor, *args: Any, **kwargs: Any) -> None:
    trace.put(out, [trace.graph.leaf(size) for size in out.shape], [False] * out.dim(), is_uniform=True)


@rule(
    *named(
        "arange",
        "eye",
        "linspace",
        "tril_indices",
        "triu_indices",
        "randperm",
        "bartlett_window",
    )
)
def _positions(trace: Trace, out: Tensor, *args: Any, **kwargs: Any) -> None:
    trace.put(out, trace.pinned(out.shape, "its values depend on the index"), [False] * out.dim())


@rule(aten.tril, aten.triu, aten.tril_, aten.triu_)
def _triangle(trace: Trace, out: Tensor, tensor: Tensor, diagonal: int = 0) -> None:
    tracked = trace[tensor]
    for axis in tracked.axes[-2:]:
        trace.pin(axis, "its values depend on the index")
    trace.put(out, tracked.axes, tracked.zero)


@rule(aten.as_strided, aten.as_strided_)
def _restrided(trace: Trace, out: Tensor, tensor: Tensor, *args: Any, **kwargs: Any) -> None:
    """The same memory under other sizes and strides: dimensions that stay as they are are carried."""
    tracked = trace[tensor]
    dims = same_dims(tensor, out)
    if dims is None:
        reason = "its memory is read with other strides"
        trace.pin_all([tensor], reason)
        trace.put(out, trace.pinned(out.shape, reason))
        return
    for d in set(range(tensor.dim())) - set(dims):
        trace.pin(tracked.axes[d], "windows of it lie one over another")
    windows = trace.pinned(out.shape, "it is a window of another")
    axes = [windows[i] if d is None else tracked.axes[d] for i, d in enumerate(dims)]
    trace.put(out, axes, [d is not None and tracked.zero[d] for d in dims], tracked.source)


def same_dims(tensor: Tensor, other: Tensor) -> list[int | None] | None:
    """For each dimension of a view of the same memory, which of ``tensor`` it is, None for one of windows over others;
    None where that cannot be told, as in memory with gaps.

    What lies closer together in memory than any window steps is left alone by windows, and so is what lies further
    apart than all of them reach.
    """
    before, after = _layout(tensor), _layout(other)
    if smaller_strides(tensor) is None or other.storage_offset() != tensor.storage_offset():
        return None
    most = min(len(before), len(after))
    first = next((i for i in range(most) if before[i] != after[i]), most)
    last = next((i for i in range(most - first) if before[-1 - i] != after[-1 - i]), most - first)
    dims = [
        i if i < first else i - len(after) + len(before) if i >= len(after) - last else None for i in range(len(after))
    ]
    while True:
        changed = [before[d] for d in set(range(len(before))) - set(dims)]
        windows = [after[i] for i, d in enumerate(dims) if d is None]
        closest = min((s for n, s in changed if n != 1), default=1)
        apart = [d for d in dims if d is not None and before[d][0] != 1 and before[d][1] < closest]
        if all(s % closest == 0 for _, s in windows):
            break
        if not apart:
            return None
        dims[dims.index(max(apart, key=lambda d: before[d][1]))] = None
    reach = sum((n - 1) * s for n, s in windows) + closest
    further = [before[d][1] for d in dims if d is not None and before[d][1] > closest]
    return dims if not windows or reach <= min(further, default=tensor.numel()) else None


def _layout(tensor: Tensor) -> list[tuple[int, int]]:
    """(size, stride) of each dimension; the stride of one of size 1 says nothing."""
    return [(n, s) if n != 1 else (1, 0) for n, s in zip(tensor.shape, tensor.stride(), strict=True)]


def smaller_strides(tensor: Tensor) -> list[list[int]] | None:
    """For each dimension, those that lie closer together in memory; None where memory has gaps or is read twice."""
    layout = _layout(tensor)
    closer = [[other for other, (_, step) in enumerate(layout) if 0 < step < s] for _, s in layout]
    dense = all(s == math.prod(layout[d][0] for d in closer[i]) for i, (n, s) in enumerate(layout) if n != 1)
    return closer if dense else None
