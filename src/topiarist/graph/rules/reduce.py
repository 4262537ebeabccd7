"""Reductions: a sum over an axis is exact where a zeroed index is zero; a mean, a maximum or a softmax is not."""

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


def _reduce(trace: Trace, out: Any, x: Tensor, dims: Any, operator: str, exact_at_zero: bool) -> None:
    tracked = trace[x]
    rank = len(tracked.axes)
    chosen = {dims} if isinstance(dims, int) else set(dims or range(rank))
    reduced = {d % rank for d in chosen} if rank else set()
    for d in reduced:
        if not (exact_at_zero and tracked.zero[d]):
            trace.inexact(tracked.axes[d], operator)
    outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
    for i, tensor in enumerate(outputs):
        are_indices = operator in _OF_INDICES or (operator in _WITH_INDICES and i > 0)
        pins = [(tracked.axes[d], "its indices become values") for d in reduced] if are_indices else []
        ranges = tracked.axes[next(iter(reduced))] if are_indices and len(reduced) == 1 else None
        if tensor.dim() == rank:  # keepdim
            axes = [trace.graph.one if d in reduced else axis for d, axis in enumerate(tracked.axes)]
            trace.put(tensor, axes, tracked.zero, pins=pins, ranges=ranges)
        else:
            kept = [d for d in range(rank) if d not in reduced]
            trace.put(
                tensor, [tracked.axes[d] for d in kept], [tracked.zero[d] for d in kept], pins=pins, ranges=ranges
            )


_OF_INDICES = ("argmax", "argmin")
_WITH_INDICES = ("max", "min", "median", "nanmedian", "mode")  # after the values


def _over(name: str, exact_at_zero: bool) -> None:
    @rule(*named(name))
    def run(trace: Trace, out: Any, x: Tensor, dims: Any = None, *args: Any, **kwargs: Any) -> None:
        listed = isinstance(dims, (list, tuple)) or (isinstance(dims, int) and not isinstance(dims, bool))
        _reduce(trace, out, x, dims if listed else kwargs.get("dim"), name, exact_at_zero)


for _name in ("sum", "nansum"):
    _over(_name, exact_at_zero=True)
for _name in (
    "mean", "amax", "amin", "aminmax", "max", "min", "prod", "var", "std", "var_mean", "std_mean", "argmax", "argmin",
    "any", "all", "logsumexp", "median", "nanmedian", "mode",
):  # fmt: skip
    _over(_name, exact_at_zero=False)


@rule(aten.linalg_vector_norm, aten.norm)
def _norm(trace: Trace, out: Tensor, x: Tensor, p: Any = 2, dims: Any = None, *args: Any, **kwargs: Any) -> None:
    _reduce(trace, out, x, dims, "norm", exact_at_zero=True)


@rule(*named(
        "_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax", "cumprod",
        "logcumsumexp", "softmax_",
    )
)  # fmt: skip
def running(trace: Trace, out: Tensor, x: Tensor, dim: int, *args: Any, **kwargs: Any) -> None:
    """A softmax, or a sum that runs: every index tells on others."""
    tracked = trace[x]
    trace.inexact(tracked.axes[dim], "a softmax or running sum")
    trace.put(out, tracked.axes, [False] * out.dim())


def ranked(trace: Trace, out: Sequence[Tensor], x: Tensor, dim: int) -> None:
    """Values are ranked along a dimension, which stays whole."""
    axes = list(trace[x].axes)
    if axes:
        trace.pin(axes[dim], "its values are ranked")
    for tensor in out:
        if tensor.dim() < len(axes):
            kept = [axis for d, axis in enumerate(axes) if d != dim % len(axes)]
        else:
            kept = list(axes)
            kept[dim : dim + 1 or None] = trace.pinned([tensor.shape[dim]], "it ranks values") if axes else []
        trace.put(tensor, kept, [False] * tensor.dim())


@rule(aten.kthvalue)
def _chosen_by_rank(trace: Trace, out: Any, x: Tensor, k: int, dim: int = -1, *args: Any, **kwargs: Any) -> None:
    ranked(trace, out, x, dim)


@rule(aten.topk)
def _topk(trace: Trace, out: Any, x: Tensor, k: int, dim: int = -1, *args: Any, **kwargs: Any) -> None:
    """The best of an axis and their places: indices of that axis, for whoever looks something up by them."""
    axes = list(trace[x].axes)
    if not axes:
        ranked(trace, out, x, dim)
        return
    over = axes[dim]
    trace.ranked(over, k, "a top-k")
    axes[dim] = trace.pinned([out[0].shape[dim]], "it ranks values")[0]
    trace.put(out[0], axes, [False] * len(axes))
    trace.put(out[1], axes, [False] * len(axes), pins=[(over, "its indices become values")], ranges=over)


@rule(*named(
        "unique_dim", "_unique", "_unique2", "unique_consecutive", "unique_dim_consecutive",
        "masked_select", "argwhere",
    )
)  # fmt: skip
def counted(trace: Trace, out: Any, *args: Any, **kwargs: Any) -> None:
    """What depends on every value there is: nothing of it can go."""
    reason = "its values are counted or searched"
    trace.pin_all((t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)), reason)
    for tensor in (t for t in tree_leaves(out) if isinstance(t, Tensor)):
        trace.put(tensor, trace.pinned(tensor.shape, reason))


@rule(aten.nonzero)
def _nonzero(trace: Trace, out: Tensor, x: Tensor) -> None:
    """Where something is; of an axis of which some indices are chosen, which of them are."""
    hit = trace.picks.hit(x)
    if hit is None:
        counted(trace, out, x)
    else:
        trace.put(out, (hit, trace.graph.one), [False] * 2, pins=[(hit, "its indices become values")], ranges=hit)
