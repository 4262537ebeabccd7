"""Normalisations: batch norm scales each channel alone (exact); the others run over the axes they normalise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from topiarist.graph.rules import named, rule

if TYPE_CHECKING:
    from topiarist.graph.axis import Axis
    from topiarist.graph.trace import Trace

aten = torch.ops.aten


def _affine(trace: Trace, axes: Sequence[Axis], operands: Sequence[Tensor | None], operator: str) -> bool:
    """Tie weight, bias and statistics to the axes they scale; whether a zeroed index comes out as zero."""
    for operand in operands:
        if operand is not None and operand.dim() == len(axes):
            for a, b in zip(axes, trace[operand].axes, strict=True):
                trace.unify(a, b, operator)
    if operands[0] is not None:
        trace.scaled(operands[0])
    return operands[0] is not None and all(o is None or all(trace[o].zero) for o in operands[:2])


@rule(*named(
        "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training",
        "cudnn_batch_norm", "miopen_batch_norm", "_native_batch_norm_legit_functional",
        "_batch_norm_with_update", "_batch_norm_no_update", "batch_norm",
    )
)  # fmt: skip
def _batch_norm(
    trace: Trace, out: Any, x: Tensor, weight: Any = None, bias: Any = None, mean: Any = None, var: Any = None,
    *others: Any,
) -> None:  # fmt: skip
    first, *rest = (out,) if isinstance(out, Tensor) else out
    tracked = trace[x]
    operands = [o if isinstance(o, Tensor) else None for o in (weight, bias, mean, var)]
    zero = _affine(trace, tracked.axes[1:2], operands, "batch norm")
    for axis in (tracked.axes[0], *tracked.axes[2:]):  # in training the statistics are of this very input
        if not all(leaf.pins for leaf in trace.graph.leaves(axis)):
            trace.inexact(axis, "batch norm")
    if x.numel() == x.shape[1]:  # one value a channel: in training that is refused
        trace.modes.are_one = False
    trace.put(first, tracked.axes, (tracked.zero[0], zero, *tracked.zero[2:]))
    for extra in rest:
        if extra.dim() == 1 and extra.shape[0] == x.shape[1]:
            trace.put(extra, tracked.axes[1:2], [False])


@rule(aten.native_layer_norm, aten.layer_norm)
def _layer_norm(
    trace: Trace, out: Any, x: Tensor, shape: Sequence[int], weight: Any = None, bias: Any = None, *_: Any
) -> None:
    first, *rest = (out,) if isinstance(out, Tensor) else out
    tracked = trace[x]
    normalised = tracked.axes[-len(shape) :]
    zero = _affine(trace, normalised, (weight, bias), "layer norm")
    for axis in normalised:
        trace.inexact(axis, "layer norm")
    kept = len(tracked.axes) - len(shape)
    trace.put(first, tracked.axes, (*tracked.zero[:kept], *([zero] * len(shape))))
    for extra in rest:
        trace.put(extra, (*tracked.axes[:kept], *([trace.graph.one] * len(shape))), [False] * extra.dim())


@rule(aten.rms_norm, aten._fused_rms_norm)
def _rms_norm(trace: Trace, out: Any, x: Tensor, shape: Sequence[int], weight: Any = None, *_: Any) -> None:
    _layer_norm(trace, out, x, shape, weight, None)


@rule(aten._weight_norm_interface)
def _weight_norm(trace: Trace, out: Sequence[Tensor], direction: Tensor, scale: Tensor, dim: int = 0) -> None:
    """w = g · v / |v|, the norm over all dimensions of v but ``dim``: a zeroed v has no direction, a zeroed g has w."""
    tracked, gains = trace[direction], trace[scale]
    trace.unify(tracked.axes[dim], gains.axes[dim], "weight norm")
    trace.points(direction, dim)
    zero = [gains.zero[dim] if i == dim % direction.dim() else z for i, z in enumerate(tracked.zero)]
    trace.put(out[0], tracked.axes, zero, tracked.source)
    trace.put(out[1], gains.axes, [False] * len(gains.axes))


@rule(aten.native_group_norm, aten.group_norm)
def _group_norm(trace: Trace, out: Any, x: Tensor, *args: Any) -> None:
    if isinstance(out, Tensor):  # group_norm(x, num_groups, weight, bias, …)
        groups, weight, bias = args[0], *(*args[1:3], None, None)[:2]
        outputs: Sequence[Tensor] = (out,)
    else:  # native_group_norm(x, weight, bias, N, C, HxW, num_groups, …)
        weight, bias, groups = args[0], args[1], args[5]
        outputs = out
    tracked = trace[x]
    parts = trace.graph.split(tracked.axes[1], [groups, x.shape[1] // groups], "group norm")
    trace.inexact(parts[1], "group norm")
    zero = _affine(trace, tracked.axes[1:2], (weight, bias), "group norm")
    trace.put(outputs[0], tracked.axes, (tracked.zero[0], zero, *([False] * (x.dim() - 2))))
    for extra in outputs[1:]:
        trace.put(extra, (tracked.axes[0], parts[0])[: extra.dim()], [False] * extra.dim())
