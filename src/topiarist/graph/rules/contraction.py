"""Contractions: the contracted pair is unified, the others are carried; removing a contracted index is exact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from topiarist.graph.rules import named, rule
from topiarist.graph.rules.pointwise import pointwise

if TYPE_CHECKING:
    from topiarist.graph.trace import Trace

aten = torch.ops.aten


@rule(aten.mm)
def _mm(trace: Trace, out: Tensor, a: Tensor, b: Tensor) -> None:
    k = trace.contract((a, 1), (b, 0), "mm")
    left, right = trace[a], trace[b]
    factor = (b, 0, 1) if right.source else (a, 1, 0)
    trace.cost(left.axes[0], k, right.axes[1], source=right.source or left.source, factor=factor)
    trace.put(out, (left.axes[0], right.axes[1]), (left.zero[0], right.zero[1]))


@rule(aten.addmm)
def _addmm(trace: Trace, out: Tensor, bias: Tensor, a: Tensor, b: Tensor, **_: Any) -> None:
    _mm(trace, out, a, b)
    trace.adds(b, bias)
    pointwise(trace, out, (out, bias), "addmm", "all")


@rule(aten.bmm)
def bmm(trace: Trace, out: Tensor, a: Tensor, b: Tensor) -> None:
    """A matrix product for each index of a batch."""
    k = trace.contract((a, 2), (b, 1), "bmm")
    left, right = trace[a], trace[b]
    batch = trace.unify(left.axes[0], right.axes[0], "bmm")
    if left.source is None and right.source is None:
        trace.graph.mark_role(batch, "head")  # both sides are activations: attention
    factor = (b, 1, 2) if right.source else (a, 2, 1)
    trace.cost(batch, left.axes[1], k, right.axes[2], source=right.source or left.source, factor=factor)
    zeros = (left.zero[0] or right.zero[0], left.zero[1], right.zero[2])
    trace.put(out, (batch, left.axes[1], right.axes[2]), zeros)


@rule(aten.baddbmm)
def _baddbmm(trace: Trace, out: Tensor, bias: Tensor, a: Tensor, b: Tensor, **_: Any) -> None:
    bmm(trace, out, a, b)
    pointwise(trace, out, (out, bias), "baddbmm", "all")


@rule(aten.mv)
def _mv(trace: Trace, out: Tensor, a: Tensor, b: Tensor) -> None:
    k = trace.contract((a, 1), (b, 0), "mv")
    left, right = trace[a], trace[b]
    trace.cost(left.axes[0], k, source=left.source or right.source, factor=(a, 1, 0) if left.source else None)
    trace.put(out, left.axes[:1], left.zero[:1])


@rule(aten.dot, aten.vdot)
def _dot(trace: Trace, out: Tensor, a: Tensor, b: Tensor) -> None:
    k = trace.contract((a, 0), (b, 0), "dot")
    trace.cost(k, source=trace[b].source or trace[a].source)
    trace.put(out, ())


@rule(*named("_cdist_forward", "_euclidean_dist"))
def _distances(trace: Trace, out: Tensor, a: Tensor, b: Tensor, *_: Any) -> None:
    """|a − b| of every row of one with every row of the other: exact where both are zero at a zeroed index."""
    left, right = trace[a], trace[b]
    k = trace.unify(left.axes[-1], right.axes[-1], "a distance")
    if not (left.zero[-1] and right.zero[-1]):
        trace.inexact(k, "a distance")
    batch = [trace.graph.one] * (out.dim() - 2)
    for axes in (left.axes[:-2], right.axes[:-2]):
        for place, axis in enumerate(axes, len(batch) - len(axes)):
            if trace.graph.find(axis).size != 1:
                known = batch[place]
                batch[place] = axis if known is trace.graph.one else trace.unify(known, axis, "a distance")
    trace.put(out, (*batch, left.axes[-2], right.axes[-2]), [False] * out.dim())


@rule(aten.linear)
def _linear(trace: Trace, out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
    k = trace.contract((x, x.dim() - 1), (weight, 1), "linear")
    left, right = trace[x], trace[weight]
    trace.cost(*left.axes[:-1], k, right.axes[0], source=right.source, factor=(weight, 1, 0))
    trace.put(out, (*left.axes[:-1], right.axes[0]), (*left.zero[:-1], right.zero[0]))
    if bias is not None:
        trace.adds(weight, bias)
        pointwise(trace, out, (out, bias), "linear", "all")


@rule(aten.convolution, aten._convolution)
def _convolution(
    trace: Trace, out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int, *_: Any,
) -> None:  # fmt: skip
    rank = weight.dim() - 2
    tracked, kernel = trace[x], trace[weight]
    channels, *image = tracked.axes[-(rank + 1) :]
    carried = [
        _stays(weight.shape[2 + d], *(_at(o, d) for o in (stride, padding, output_padding))) for d in range(rank)
    ]
    for axis in (*(axis for axis, stays in zip(image, carried, strict=True) if not stays), *kernel.axes[2:]):
        trace.pin(axis, "it is a spatial extent", "spatial")
    num_in = tuple(x.shape)[-(rank + 1)]
    num_out = tuple(out.shape)[-(rank + 1)]
    inner = trace.graph.split(channels, [groups, num_in // groups], "groups")
    if transposed:  # weight: (in, out / groups, *kernel)
        ties = [(trace.graph.product(inner), kernel.axes[0])]
        outer = trace.graph.product([inner[0], kernel.axes[1]])
    else:  # weight: (out, in / groups, *kernel)
        out_groups = trace.graph.split(kernel.axes[0], [groups, num_out // groups], "groups")
        if kernel.source is not None:
            trace.carried[kernel.source] = out_groups[0]
        ties = [(inner[0], out_groups[0]), (inner[1], kernel.axes[1])]
        outer = kernel.axes[0]
    for a, b in ties:
        trace.unify(a, b, "convolution")
    trace.sums(weight, 0 if transposed else 1)
    spatial = [
        axis if stays else trace.pinned([size], "it is a spatial extent", "spatial")[0]
        for axis, stays, size in zip(image, carried, tuple(out.shape)[-rank:], strict=True)
    ]
    batch = tracked.axes[: -(rank + 1)]
    pixels = image if transposed else spatial
    factor = (weight, 0, 1) if transposed else (weight, 1, 0)
    trace.cost(*batch, *kernel.axes, *pixels, source=kernel.source, factor=factor)
    zero = kernel.zero[0] and (bias is None or trace[bias].zero[0])
    zeros = [stays and z and bias is None for stays, z in zip(carried, tracked.zero[-rank:], strict=True)]
    trace.put(out, (*batch, outer, *spatial), (*tracked.zero[: len(batch)], zero, *zeros))
    if bias is not None:
        trace.adds(weight, bias)
        trace.unify(outer, trace[bias].axes[0], "convolution")


def _stays(kernel: int, stride: int, padding: int, output_padding: int) -> bool:
    """Whether a convolution treats each place along a dimension for itself, as it does examples of a batch."""
    return kernel == 1 and stride == 1 and padding == 0 and output_padding == 0


def _at(option: Any, dim: int) -> int:
    """What an option of a convolution says of one dimension; a single number says it of all."""
    number: int = option[dim if len(option) > 1 else 0] if isinstance(option, (tuple, list)) else option
    return number


def _attention(
    trace: Trace, out: Sequence[Any], query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> None:
    """softmax(q kᵀ + mask) v over (batch, heads, tokens, head_dim); grouped keys and values share heads of queries."""
    q, k, v = trace[query], trace[key], trace[value]
    trace.contract((query, query.dim() - 1), (key, key.dim() - 1), "attention")
    for i in range(query.dim() - 2):
        shared = trace.graph.split(q.axes[i], [key.shape[i], query.shape[i] // key.shape[i]], "attention")[0]
        trace.unify(shared, k.axes[i], "attention")  # each head of keys and values serves as many heads of queries
        trace.unify(shared, v.axes[i], "attention")
    trace.unify(k.axes[-2], v.axes[-2], "attention")
    for mask in (m for m in (*args, *kwargs.values()) if isinstance(m, Tensor)):  # broadcast to (…, queries, keys)
        weights = (*q.axes[:-1], k.axes[-2])
        for axis, other in zip(weights[::-1], trace[mask].axes[::-1], strict=False):
            if trace.graph.find(axis).size != 1 and trace.graph.find(other).size != 1:
                trace.unify(axis, other, "attention")
    for axis in q.axes[1:-2]:
        trace.graph.mark_role(axis, "head")
    trace.cost(*q.axes, k.axes[-2], source=None)
    trace.cost(*q.axes[:-1], k.axes[-2], v.axes[-1], source=None)
    heads = (v.zero[i] and query.shape[i] == key.shape[i] for i in range(query.dim() - 2))
    trace.put(out[0], (*q.axes[:-1], v.axes[-1]), (*heads, False, v.zero[-1]))
    for extra in out[1:]:
        if isinstance(extra, Tensor) and extra.dim() == query.dim() - 1 and extra.shape == query.shape[:-1]:
            trace.put(extra, q.axes[:-1], [False] * extra.dim())


rule(*named(
        "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_fused_attention_overrideable",
    )
)(_attention)  # fmt: skip


@rule(aten.scaled_dot_product_attention)
def _sdpa(trace: Trace, out: Tensor, *args: Any, **kwargs: Any) -> None:
    _attention(trace, (out,), *args, **kwargs)
