"""Which dimensions of a weight are summed over, and which are left: seen where it is multiplied, in any layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from topiarist.graph.axis import Axis


@dataclass(frozen=True)
class Matrix:
    """The dimensions of a weight: ``inner`` are summed over (in_features, input channels), ``outer`` are left
    (out_features, output channels), ``others`` are neither (places of a kernel, experts)."""

    inner: tuple[int, ...]
    outer: tuple[int, ...]
    others: tuple[int, ...]


def matrix_by_strides(strides: Sequence[int], view: Tensor, inner: int, outer: int) -> Matrix | None:
    """What the dimensions ``inner`` and ``outer`` of a view are in the tensor with these ``strides``.

    A dimension of the view with stride s and size n holds those of the tensor whose strides lie in [s, s · n). None
    where the view divides a dimension, so that no whole ones can be named.

    Example:
        >>> import torch
        >>> weight = torch.zeros(4, 3)  # (out, in)
        >>> matrix_by_strides(weight.stride(), weight.t(), 0, 1)
        Matrix(inner=(1,), outer=(0,), others=())
    """
    if tuple(view.stride()) == tuple(strides):
        return _matrix({inner}, {outer}, len(strides))
    held: list[set[int]] = []
    for dim in (inner, outer):
        low, high = view.stride(dim), view.stride(dim) * view.shape[dim]
        held.append({d for d, stride in enumerate(strides) if low <= stride < high})
    return _matrix(held[0], held[1], len(strides))


def matrix_by_leaves(tensor: Sequence[set[Axis]], inner: set[Axis], outer: set[Axis]) -> Matrix | None:
    """The same by the leaves that the dimensions of the tensor, and the two of the factor, hold; None where both hold
    the same ones, which cannot be told apart."""
    if inner & outer:
        return None
    held = [{d for d, leaves in enumerate(tensor) if leaves and leaves <= part} for part in (inner, outer)]
    return _matrix(held[0], held[1], len(tensor))


def _matrix(inner: set[int], outer: set[int], num: int) -> Matrix | None:
    if inner & outer:
        return None
    others = tuple(d for d in range(num) if d not in inner | outer)
    return Matrix(tuple(sorted(inner)), tuple(sorted(outer)), others)
