"""Tokens sorted by the expert that they chose, and products in groups that end where the tokens of an expert do.

What sorts indices of an axis keeps them indices of it, and how often each was chosen is a tensor over that axis: zero
at indices that nobody chose, so that its running sum, where the groups end, is the same without these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from topiarist.graph.rules import named, rule
from topiarist.graph.rules.contraction import bmm
from topiarist.graph.rules.reduce import counted, ranked, running

if TYPE_CHECKING:
    from topiarist.graph.axis import Axis
    from topiarist.graph.trace import Trace

aten = torch.ops.aten


@rule(aten.sort)
def _sort(trace: Trace, out: Sequence[Tensor], x: Tensor, dim: int = -1, *args: Any, **kwargs: Any) -> None:
    """Indices stay in the order of what they stand for, also where some of it goes; other values are ranked."""
    known = trace.indices(x)
    if known.ranges is None:
        ranked(trace, out, x, dim)
        return
    axes = list(known.axes)
    trace.pin(axes[dim], "it is sorted")
    axes[dim] = trace.pinned([x.shape[dim]], "it is sorted")[0]
    trace.put(out[0], axes, [False] * len(axes), pins=known.pins, ranges=known.ranges)
    trace.put(out[1], axes, [False] * len(axes))


@rule(aten.histc)
def _histc(trace: Trace, out: Tensor, x: Tensor, bins: int = 100, min: float = 0, max: float = 0) -> None:
    ranges = trace.indices(x).ranges
    whole = ranges is not None and bins == trace.graph.find(ranges).size and (min, max) == (0, bins - 1)
    _counts(trace, out, x, ranges if whole else None)


@rule(aten.bincount)
def _bincount(trace: Trace, out: Tensor, x: Tensor, weights: Tensor | None = None, minlength: int = 0) -> None:
    ranges = trace.indices(x).ranges
    whole = ranges is not None and weights is None and minlength == trace.graph.find(ranges).size
    _counts(trace, out, x, ranges if whole else None)


def _counts(trace: Trace, out: Tensor, x: Tensor, ranges: Axis | None) -> None:
    """How often each index of an axis was chosen; None stands for what is no such thing."""
    if ranges is None:
        counted(trace, out, x)
        return
    trace.put(out, (ranges,), [True])


@rule(aten.cumsum)
def _cumsum(trace: Trace, out: Tensor, x: Tensor, dim: int, *args: Any, **kwargs: Any) -> None:
    if trace.picks.hot(x) is None:
        running(trace, out, x, dim)
        return
    trace.put(out, trace[x].axes, [False])


@rule(*named("_grouped_mm"))
def _grouped_mm(trace: Trace, out: Tensor, a: Tensor, b: Tensor, offs: Tensor | None = None, *_: Any) -> None:
    """Rows of ``a``, in groups that end at ``offs``, each times its own matrix of ``b``: experts and their tokens."""
    if offs is None:
        bmm(trace, out, a, b)
        return
    if (a.dim(), b.dim()) != (2, 3):
        raise NotImplementedError(f"groups of {a.dim()} by {b.dim()} dimensions")
    k = trace.contract((a, 1), (b, 1), "grouped mm")
    left, right = trace[a], trace[b]
    trace.pin(left.axes[0], "its indices are in groups", "groups")
    groups = trace.unify(right.axes[0], trace[offs].axes[0], "grouped mm")
    if not trace.picks.are_ends(offs):
        trace.pin(groups, "it counts the groups of rows", "groups")
    elif right.source is not None:
        trace.graph.mark_role(groups, "expert")
    trace.cost(left.axes[0], k, right.axes[2], source=right.source, factor=(b, 1, 2))
    trace.put(out, (left.axes[0], right.axes[2]), (left.zero[0], right.zero[2]))
