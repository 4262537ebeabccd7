"""Structures ``kernel`` and ``vector``: whole kernels W[o, i, :, :] of a convolution, and their rows W[o, i, u, :].

Between element and filter (Mao et al. 2017, arXiv:1705.08922): what is left of a kernel mask is a table of which
feature maps are connected (Anwar, Hwang, Sung 2015).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topiarist.errors import InputError
from topiarist.graph import Axes
from topiarist.graph.matrix import Matrix
from topiarist.plan import Units
from topiarist.structure.base import require_some
from topiarist.structure.entries import back, best_of_rows, index_over, kernel_dims, last, units_by_entry


@dataclass(frozen=True)
class Kernel:
    """One unit a kernel, in one, two or three dimensions; ``minimum`` of each output map stay, the best.

    A kernel that goes saves H_out · W_out · k_h · k_w multiply–accumulates. In a depthwise convolution a map has one.

    Raises:
        InputError: ``minimum`` is no whole number from 0 up.
    """

    minimum: int = 1
    is_physical: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if type(self.minimum) is not int or self.minimum < 0:
            raise InputError(f"minimum counts the kernels of a map that stay, 0 or more, got {self.minimum!r}")

    def units(self, axes: Axes, keep: Sequence[str] = ()) -> list[Units]:
        """One set of units per weight of a convolution whose kernel has more than one place.

        Raises:
            InputError: a pattern of ``keep`` matches no module, or the model has no such convolution.
        """
        return require_some(_along(axes, keep, whole=True), "kernel of a convolution", axes)

    def protected(
        self, axes: Axes, units: Sequence[Units], scores: Mapping[str, Tensor], gone: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The best kernels of each output map: bool ``(num units,)`` per set."""
        found = {}
        for each in units:
            matrix, shape = axes.matrices()[each.name], axes.shape(each.name)
            beside = [d for d in range(len(shape)) if d not in kernel_dims(axes, each.name)]
            sizes, inner = [shape[d] for d in beside], [beside.index(d) for d in matrix.inner if d in beside]
            score = scores[each.name]
            lost = gone.get(each.name, torch.zeros(each.num, dtype=torch.bool)).to(score.device)
            rows, lost = last(score, sizes, inner), last(lost, sizes, inner)
            found[each.name] = back(best_of_rows(rows, min(self.minimum, rows.shape[1]), lost), sizes, inner)
        return found


@dataclass(frozen=True)
class Vector:
    """One unit a row of a kernel, W[o, i, u, :]; for a one-dimensional convolution, the kernel."""

    is_physical: ClassVar[bool] = False

    def units(self, axes: Axes, keep: Sequence[str] = ()) -> list[Units]:
        """One set of units per weight of a convolution whose kernel has more than one place.

        Raises:
            InputError: a pattern of ``keep`` matches no module, or the model has no such convolution.
        """
        return require_some(_along(axes, keep, whole=False), "kernel of a convolution", axes)


def _along(axes: Axes, keep: Sequence[str], *, whole: bool) -> list[Units]:
    """Units of all places of a kernel, or of those of one row."""

    def unit_of(name: str, matrix: Matrix) -> Tensor | None:
        shape, dims = axes.shape(name), kernel_dims(axes, name)
        if math.prod(shape[d] for d in dims) == 1:
            return None
        along = dims if whole else dims[-1:]
        return index_over(shape, [d for d in range(len(shape)) if d not in along])

    return units_by_entry(axes, keep, unit_of)
