"""Fourier transforms, and complex numbers seen as pairs: what a transform runs along stays whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from topiarist.graph.rules import named, rule

if TYPE_CHECKING:
    from topiarist.graph.trace import Trace

aten = torch.ops.aten


@rule(*named("_fft_r2c", "_fft_c2r", "_fft_c2c"))
def _fourier(trace: Trace, out: Tensor, x: Tensor, dims: Sequence[int], *_: object) -> None:
    tracked = trace[x]
    axes, zeros = list(tracked.axes), list(tracked.zero)
    for dim in dims:
        trace.pin(axes[dim], "a Fourier transform runs along it")
        zeros[dim] = False
        if out.shape[dim] != x.shape[dim]:
            axes[dim] = trace.pinned([out.shape[dim]], "it counts frequencies")[0]
    trace.put(out, axes, zeros)


@rule(*named("view_as_real", "_view_as_real_copy", "view_as_real_copy"))
def _as_pairs(trace: Trace, out: Tensor, x: Tensor) -> None:
    tracked = trace[x]
    (pair,) = trace.pinned([2], "it holds real and imaginary parts")
    trace.put(out, (*tracked.axes, pair), (*tracked.zero, False), tracked.source)


@rule(*named("view_as_complex", "view_as_complex_copy"))
def _as_complex(trace: Trace, out: Tensor, x: Tensor) -> None:
    tracked = trace[x]
    trace.pin(tracked.axes[-1], "it holds real and imaginary parts")
    trace.put(out, tracked.axes[:-1], tracked.zero[:-1], tracked.source)
