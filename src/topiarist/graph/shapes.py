"""Shapes that the commonest operators return, by formula: on the meta device torch takes up to milliseconds for each.

A formula returns None where it does not hold: for what is not contiguous, of mixed dtypes, or does not fit. Torch is
asked then, and says what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Made = tuple[tuple[int, ...], torch.dtype]  # the shape and dtype of a contiguous tensor
_HALVES = (torch.float16, torch.bfloat16)
_FLOATS = (*_HALVES, torch.float32, torch.float64)
aten = torch.ops.aten


def _convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], transposed: bool, output_padding: Any, groups: int,
) -> list[Made] | None:  # fmt: skip
    """⌊(n + 2 · padding − dilation · (kernel − 1) − 1) / stride⌋ + 1 along each dimension of the image."""
    (num, channels, *image), (made, entering, *kernel) = x.shape, weight.shape
    options = (stride, padding, dilation)
    if transposed or any(len(option) != len(kernel) for option in (image, *options)) or not _are_plain(x, weight):
        return None
    if channels != entering * groups or made % groups or not _are_vectors(made, x.dtype, bias):
        return None
    extents = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in zip(image, kernel, *options, strict=True)]
    return [((num, made, *extents), x.dtype)] if extents and min(extents) > 0 else None


def _batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, var: Tensor | None, *_: Any
) -> list[Made] | None:
    if x.dim() < 2 or not _are_plain(x) or not _are_vectors(x.shape[1], x.dtype, weight, bias, mean, var):
        return None
    statistics = (x.shape[1:2], _precise(x.dtype))
    return [(x.shape, x.dtype), statistics, statistics]


def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> list[Made] | None:
    kept = x.dim() - len(shape)
    given = [t for t in (weight, bias) if t is not None]
    if not _are_plain(x, *given) or any(t.shape != x.shape[kept:] or len(shape) != t.dim() for t in given) or kept < 0:
        return None
    if tuple(shape) != x.shape[kept:]:
        return None
    statistics = ((*x.shape[:kept], *[1] * len(shape)), _precise(x.dtype))
    return [(x.shape, x.dtype), statistics, statistics]


def _addmm(bias: Tensor, a: Tensor, b: Tensor) -> list[Made] | None:
    (rows, summed), (entering, columns) = a.shape, b.shape
    fits = summed == entering and a.dtype == b.dtype and a.is_meta and b.is_meta
    return [((rows, columns), a.dtype)] if fits and _are_vectors(columns, a.dtype, bias) else None


def _product(a: Tensor, b: Tensor) -> list[Made] | None:
    """Of tensors of as many dimensions, one of which has the shape of the result, as the scales of channels have."""
    if not isinstance(b, Tensor) or a.dim() != b.dim() or not _are_plain(a, b):
        return None
    if any(m != n and m != 1 and n != 1 for m, n in zip(a.shape, b.shape, strict=True)):
        return None
    shape = tuple(map(max, a.shape, b.shape)) if a.numel() and b.numel() else None
    return [(shape, a.dtype)] if shape in (a.shape, b.shape) and shape is not None else None


def _mean(x: Tensor, dims: Sequence[int] | None, keepdim: bool = False) -> list[Made] | None:
    if not dims or not _are_plain(x) or not all(-x.dim() <= d < x.dim() for d in dims):
        return None
    gone = {d % x.dim() for d in dims}
    if len(gone) < len(dims):
        return None
    return [(tuple(1 if d in gone else n for d, n in enumerate(x.shape) if keepdim or d not in gone), x.dtype)]


SHAPES: dict[Any, Callable[..., list[Made] | None]] = {
    aten.convolution.default: _convolution,
    aten.native_batch_norm.default: _batch_norm,
    aten.native_layer_norm.default: _layer_norm,
    aten.addmm.default: _addmm,
    aten.mean.dim: _mean,
    aten.mul.Tensor: _product,
}


def _are_plain(first: Tensor, *others: Tensor) -> bool:
    """Whether tensors lie on the meta device without gaps and are of one floating dtype."""
    return first.dtype in _FLOATS and all(
        t.is_meta and t.dtype is first.dtype and t.is_contiguous() for t in (first, *others)
    )


def _are_vectors(size: int, dtype: torch.dtype, *tensors: Tensor | None) -> bool:
    """Whether those that are there have one entry for each of ``size`` channels."""
    return all(t is None or (t.is_meta and t.dtype is dtype and t.shape == (size,)) for t in tensors)


def _precise(dtype: torch.dtype) -> torch.dtype:
    """The dtype of statistics."""
    return torch.float32 if dtype in _HALVES else dtype
