"""Indexing by tensors: what is looked up by value is pinned, the dimensions beside it are carried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from topiarist.graph.rules import rule

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
    trace.pin(axes[dim], _LOOKED_UP, "lookup")
    axes[dim] = trace.pinned([out.shape[dim]], "it is looked up by value")[0]
    trace.put(out, axes, tracked.zero, tracked.source)


@rule(aten.index)
def _index(trace: Trace, out: Tensor, x: Tensor, indices: Sequence[Tensor | None]) -> None:
    tracked = trace[x]
    places: list[int] = []
    dim = 0
    for index in indices:
        is_mask = index is not None and index.dtype in (torch.bool, torch.uint8)
        num = index.dim() if index is not None and is_mask else 1
        if index is not None:
            places.extend(range(dim, dim + num))
        dim += num
    for d in places:
        trace.pin(tracked.axes[d], _LOOKED_UP, "lookup")
    kept = [d for d in range(len(tracked.axes)) if d not in places]
    together = places == list(range(places[0], places[-1] + 1))
    first = len([d for d in kept if d < places[0]]) if together else 0
    num_new = out.dim() - len(kept)
    axes = [tracked.axes[d] for d in kept]
    axes[first:first] = trace.pinned(out.shape[first : first + num_new], "it is looked up by value")
    zeros = [tracked.zero[d] for d in kept]
    zeros[first:first] = [False] * num_new
    trace.put(out, axes, zeros)


@rule(aten.gather)
def _gather(trace: Trace, out: Tensor, x: Tensor, dim: int, index: Tensor, **_: Any) -> None:
    tracked, places = trace[x], trace[index]
    for d in range(out.dim()):
        if d == dim % out.dim() or x.shape[d] != out.shape[d]:
            trace.pin(tracked.axes[d], _LOOKED_UP, "lookup")
        else:
            trace.unify(tracked.axes[d], places.axes[d], "gather")
    trace.put(out, places.axes, [False] * out.dim())
