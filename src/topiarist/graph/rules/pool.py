"""Pooling and resizing: channels are carried, the image changes size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from topiarist.graph.rules import named, rule

if TYPE_CHECKING:
    from topiarist.graph.trace import Trace

aten = torch.ops.aten


@rule(*named(
    "max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool1d",
    "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "max_pool1d_with_indices", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d",
    "upsample_bicubic2d", "upsample_linear1d", "upsample_trilinear3d", "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d",
    "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d",
    "replication_pad3d", "mkldnn_max_pool2d",
))  # fmt: skip
def _image(trace: Trace, out: Any, x: Tensor, *args: Any, **kwargs: Any) -> None:
    tracked = trace[x]
    for tensor in tree_leaves(out):
        axes = []
        for d, axis in enumerate(tracked.axes):
            if trace.graph.find(axis).size == tensor.shape[d]:
                axes.append(axis)
            else:
                trace.pin(axis, "it is a spatial extent")
                axes.extend(trace.pinned([tensor.shape[d]], "it is a spatial extent"))
        trace.put(tensor, axes, tracked.zero)
