"""Indexing by tensors: what is looked up, or written, by value is pinned; the dimensions beside it are carried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from topiarist.graph.rules import named, rule

if TYPE_CHECKING:
    from topiarist.graph.trace import Trace

aten = torch.ops.aten
_LOOKED_UP = "its indices are looked up by value"


@rule(aten.embedding)
def _embedding(trace: Trace, out: Tensor, weight: Tensor, indices: Tensor, *_: Any) -> None:
    table, places = trace[weight], trace[indices]
    trace.pin(table.axes[0], _LOOKED_UP, "lookup")
    trace.put(out, (*places.axes, table.axes[1]), (*([False] * indices.dim()), table.zero[1]))


@rule(aten.index_select)
def _index_select(trace: Trace, out: Tensor, x: Tensor, dim: int, index: Tensor) -> None:
    tracked = trace[x]
    axes = list(tracked.axes)
    trace.looked_up(x, dim, index, _LOOKED_UP)
    axes[dim] = trace.pinned([out.shape[dim]], "it is looked up by value")[0]
    trace.put(out, axes, tracked.zero, tracked.source)


def _places(trace: Trace, x: Tensor, indices: Sequence[Tensor | None]) -> tuple[list[int], int]:
    """The dimensions of ``x`` that are not indexed, which are pinned, and after how many of them the new ones come."""
    places: list[int] = []
    dim = 0
    for index in indices:
        num = index.dim() if index is not None and index.dtype in (torch.bool, torch.uint8) else 1
        if index is not None:
            places.extend(range(dim, dim + num))
        dim += num
    by = {d: index for d, index in enumerate(indices) if index is not None}
    for d in places:
        if len(by) == len(places):  # no masks, which take several dimensions
            trace.looked_up(x, d, by[d], _LOOKED_UP)
        else:
            trace.pin(trace[x].axes[d], _LOOKED_UP, "lookup")
    kept = [d for d in range(x.dim()) if d not in places]
    together = places == list(range(places[0], places[-1] + 1))
    return kept, len([d for d in kept if d < places[0]]) if together else 0


@rule(aten.index)
def _index(trace: Trace, out: Tensor, x: Tensor, indices: Sequence[Tensor | None]) -> None:
    tracked = trace[x]
    kept, first = _places(trace, x, indices)
    num_new = out.dim() - len(kept)
    axes = [tracked.axes[d] for d in kept]
    axes[first:first] = trace.pinned(out.shape[first : first + num_new], "it is looked up by value")
    zeros = [tracked.zero[d] for d in kept]
    zeros[first:first] = [False] * num_new
    trace.put(out, axes, zeros)


@rule(*named("index_put", "index_put_", "_index_put_impl_"))
def _index_put(
    trace: Trace, out: Tensor, x: Tensor, indices: Sequence[Tensor | None], values: Tensor, *args: Any, **kwargs: Any
) -> None:
    """x[indices] = values, or += with ``accumulate``: ``values`` are broadcast to what the indexing gives."""
    tracked, written = trace[x], trace[values]
    kept, first = _places(trace, x, indices)
    num_new = max(1 if i.dtype in (torch.bool, torch.uint8) else i.dim() for i in indices if i is not None)
    dims: list[int | None] = [*kept[:first], *([None] * num_new), *kept[first:]]  # of x[indices], as those of x
    zeros = [False] * x.dim()
    for d, axis, zero in zip(dims[::-1], written.axes[::-1], written.zero[::-1], strict=False):
        if d is None:
            trace.pin(axis, "it is written to places given by value", "lookup")
        elif trace.graph.find(axis).size != 1:
            trace.unify(tracked.axes[d], axis, "a write by index")
            zeros[d] = tracked.zero[d] and zero
    trace.put(out, tracked.axes, zeros)


@rule(*named("scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_"))
def _scatter(
    trace: Trace, out: Tensor, x: Tensor, dim: int, index: Tensor, source: Any = None, *args: Any, **kwargs: Any
) -> None:
    """Entries of ``source`` go, along ``dim``, to the places that ``index`` gives; beside it each stays in its line."""
    tracked = trace[x]
    source = kwargs.get("src", kwargs.get("value", source))
    zeros = [zero and (isinstance(source, Tensor) or source == 0) for zero in tracked.zero]
    for d, axis in enumerate(tracked.axes):
        lines = [t for t in (index, source) if isinstance(t, Tensor)]
        if d == dim % x.dim() and trace.indices(index).ranges is not None:
            trace.looked_up(x, d, index, _LOOKED_UP)
            for tensor in lines:
                trace.pin(trace.indices(tensor).axes[d], "it is written to places given by value", "lookup")
        elif d == dim % x.dim() or any(t.shape[d] != x.shape[d] for t in lines):
            for tensor in (x, *lines):
                trace.pin(trace.indices(tensor).axes[d], _LOOKED_UP, "lookup")
        for tensor in lines if all(t.shape[d] == x.shape[d] for t in lines) and d != dim % x.dim() else ():
            trace.unify(axis, trace.indices(tensor).axes[d], "scatter")
        zeros[d] = zeros[d] and d != dim % x.dim() and (not isinstance(source, Tensor) or trace[source].zero[d])
    trace.put(out, tracked.axes, zeros)


@rule(*named("index_add", "index_add_", "index_copy", "index_copy_", "index_fill", "index_fill_"))
def _index_add(
    trace: Trace, out: Tensor, x: Tensor, dim: int, index: Tensor, source: Any, *args: Any, **kwargs: Any
) -> None:
    """Slices of ``source``, or a value, go to the places of ``x`` along ``dim`` that ``index`` gives."""
    tracked = trace[x]
    dim %= x.dim()
    trace.pin(tracked.axes[dim], _LOOKED_UP, "lookup")
    zeros = [zero and d != dim for d, zero in enumerate(tracked.zero)]
    if isinstance(source, Tensor) and source.dim() == x.dim():
        written = trace[source]
        for d, axis in enumerate(written.axes):
            trace.unify(axis, trace[index].axes[0] if d == dim else tracked.axes[d], "a write by index")
        zeros = [a and b for a, b in zip(zeros, written.zero, strict=True)]
    else:
        zeros = [zero and not isinstance(source, Tensor) and source == 0 for zero in zeros]
    trace.put(out, tracked.axes, zeros)


@rule(aten.gather)
def _gather(trace: Trace, out: Tensor, x: Tensor, dim: int, index: Tensor, **_: Any) -> None:
    tracked, places = trace[x], trace.indices(index)
    for d in range(out.dim()):
        if d == dim % out.dim():
            trace.looked_up(x, d, index, _LOOKED_UP)
        elif x.shape[d] != out.shape[d]:
            trace.pin(tracked.axes[d], _LOOKED_UP, "lookup")
        else:
            trace.unify(tracked.axes[d], places.axes[d], "gather")
    trace.put(out, places.axes, [False] * out.dim())


@rule(*named("multinomial", "nonzero_static"))
def _chosen_by_value(trace: Trace, out: Any, x: Tensor, *args: Any, **kwargs: Any) -> None:
    """What comes out, and how much of it, hangs on the values: their positions must stay what they are."""
    trace.pin_all([t for t in tree_leaves((x, args, kwargs)) if isinstance(t, Tensor)], "it is chosen by value")
    for tensor in (t for t in tree_leaves(out) if isinstance(t, Tensor)):
        trace.put(tensor, trace.pinned(tensor.shape, "it is chosen by value"), [False] * tensor.dim())


@rule(*named("_embedding_bag", "_embedding_bag_forward_only"))
def _embedding_bag(trace: Trace, out: Sequence[Tensor], weight: Tensor, *args: Any, **kwargs: Any) -> None:
    """Sums, means or maxima of rows of a table: its columns are carried."""
    table = trace[weight]
    trace.pin(table.axes[0], _LOOKED_UP, "lookup")
    for tensor in out[1:]:
        trace.put(tensor, trace.pinned(tensor.shape, "it is looked up by value"), [False] * tensor.dim())
    bags = trace.pinned(out[0].shape[:1], "it is looked up by value")
    trace.put(out[0], (*bags, table.axes[1]), (False, table.zero[1]))
