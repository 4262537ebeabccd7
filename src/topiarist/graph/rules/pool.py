"""Pooling and resizing: channels are carried, the image changes size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from topiarist.graph.rules import named, rule
from topiarist.graph.sizes import Term

if TYPE_CHECKING:
    from topiarist.graph.trace import Trace

aten = torch.ops.aten


def _image(name: str, rank: int) -> None:
    @rule(*named(name))
    def run(trace: Trace, out: Any, x: Tensor, *args: Any, **kwargs: Any) -> None:
        tracked = trace[x]
        for axis in tracked.axes[-rank:]:
            trace.pin(axis, "it is a spatial extent", "spatial")
        for tensor in tree_leaves(out):
            image = trace.pinned(tensor.shape[-rank:], "it is a spatial extent", "spatial")
            trace.put(tensor, (*tracked.axes[:-rank], *image), (*tracked.zero[:-rank], *([False] * rank)))


for _rank, _names in {
    1: "max_pool1d max_pool1d_with_indices avg_pool1d adaptive_avg_pool1d adaptive_max_pool1d upsample_nearest1d "
    "upsample_linear1d _upsample_nearest_exact1d reflection_pad1d replication_pad1d",
    2: "max_pool2d max_pool2d_with_indices mkldnn_max_pool2d avg_pool2d adaptive_avg_pool2d _adaptive_avg_pool2d "
    "adaptive_max_pool2d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa "
    "_upsample_bicubic2d_aa _upsample_nearest_exact2d reflection_pad2d replication_pad2d",
    3: "max_pool3d max_pool3d_with_indices avg_pool3d adaptive_avg_pool3d _adaptive_avg_pool3d adaptive_max_pool3d "
    "upsample_nearest3d upsample_trilinear3d _upsample_nearest_exact3d reflection_pad3d replication_pad3d",
}.items():
    for _name in _names.split():
        _image(_name, _rank)


@rule(aten.pixel_shuffle)
def _pixel_shuffle(trace: Trace, out: Tensor, x: Tensor, factor: int) -> None:
    tracked = trace[x]
    *batch, channels, _, _ = tracked.axes
    kept = trace.graph.split(channels, [out.shape[-3], factor, factor], "pixel shuffle")
    trace.tie(Term("//", channels, factor**2), kept[0])
    for axis in (*kept[1:], *tracked.axes[-2:]):
        trace.pin(axis, "it is a spatial extent", "spatial")
    image = trace.pinned(out.shape[-2:], "it is a spatial extent", "spatial")
    trace.put(out, (*batch, kept[0], *image), (*tracked.zero[:-2], False, False))


@rule(aten.pixel_unshuffle)
def _pixel_unshuffle(trace: Trace, out: Tensor, x: Tensor, factor: int) -> None:
    tracked = trace[x]
    *batch, channels, _, _ = tracked.axes
    for axis in tracked.axes[-2:]:
        trace.pin(axis, "it is a spatial extent", "spatial")
    pixels = trace.pinned((factor, factor), "it is a spatial extent", "spatial")
    image = trace.pinned(out.shape[-2:], "it is a spatial extent", "spatial")
    trace.put(out, (*batch, trace.graph.product([channels, *pixels]), *image), (*tracked.zero[:-2], False, False))
