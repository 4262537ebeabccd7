"""Windows over images and sampling from them: channels are carried, places in the image and in a window are not cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from topiarist.graph.rules import named, rule
from topiarist.graph.sizes import Term

if TYPE_CHECKING:
    from topiarist.graph.trace import Trace

aten = torch.ops.aten
_SPATIAL = "it is a spatial extent"


@rule(aten.unfold)
def _unfold(trace: Trace, out: Tensor, x: Tensor, dim: int, size: int, step: int) -> None:
    """Windows of ``size`` along one dimension: (…, n, …) to (…, windows, …, size)."""
    tracked = trace[x]
    axes, zeros = list(tracked.axes), list(tracked.zero)
    dim %= out.dim() - 1
    trace.pin(axes[dim], "windows slide along it", "spatial")
    axes[dim], window = trace.pinned((out.shape[dim], out.shape[-1]), "windows slide along it", "spatial")
    zeros[dim] = False
    trace.put(out, (*axes, window), (*zeros, False))


@rule(aten.im2col)
def _im2col(trace: Trace, out: Tensor, x: Tensor, kernel: Sequence[int], *_: Sequence[int]) -> None:
    """(…, channels, height, width) to (…, channels · window, places)."""
    tracked = trace[x]
    *batch, channels, height, width = tracked.axes
    for axis in (height, width):
        trace.pin(axis, _SPATIAL, "spatial")
    window, places = trace.pinned((math.prod(kernel), out.shape[-1]), _SPATIAL, "spatial")
    trace.put(out, (*batch, trace.graph.product([channels, window]), places), (*tracked.zero[:-2], False))


@rule(aten.col2im)
def _col2im(
    trace: Trace, out: Tensor, x: Tensor, size: Sequence[int], kernel: Sequence[int], *_: Sequence[int]
) -> None:
    """(…, channels · window, places) to (…, channels, height, width): overlapping windows are summed."""
    tracked = trace[x]
    *batch, columns, places = tracked.axes
    channels, window = trace.graph.split(columns, [out.shape[-3], math.prod(kernel)], "a fold")
    trace.tie(Term("//", columns, math.prod(kernel)), channels)
    for axis in (window, places):
        trace.pin(axis, _SPATIAL, "spatial")
    image = trace.pinned(out.shape[-2:], _SPATIAL, "spatial")
    trace.put(out, (*batch, channels, *image), (*tracked.zero[:-1], False, False))


@rule(
    *named("grid_sampler_2d", "grid_sampler_3d", "grid_sampler", "cudnn_grid_sampler", "_grid_sampler_2d_cpu_fallback")
)
def _grid_sampler(trace: Trace, out: Tensor, x: Tensor, grid: Tensor, *_: object) -> None:
    """(batch, channels, *image) sampled at (batch, *places, coordinates) to (batch, channels, *places)."""
    tracked, sampled = trace[x], trace[grid]
    batch = trace.unify(tracked.axes[0], sampled.axes[0], "grid sampling")
    for axis in (*tracked.axes[2:], sampled.axes[-1]):
        trace.pin(axis, _SPATIAL, "spatial")
    trace.put(out, (batch, tracked.axes[1], *sampled.axes[1:-1]), (False, tracked.zero[1], *[False] * (out.dim() - 2)))
