"""Geometric median: the filters nearest to the middle of a layer are the ones that others can stand in for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topiarist.errors import InputError, nearest
from topiarist.saliency.base import Slices
from topiarist.saliency.sides import making

_DISTANCES = ("l2", "cosine")


@dataclass(frozen=True)
class GeometricMedian:
    """FPGM (He et al. 2019): s_j = Σ_i d(F_j, F_i), F_j all weights that make unit j, d the distance.

    ``distance`` is ``"l2"``, ‖F_j − F_i‖₂, or ``"cosine"``, 1 − cos(F_j, F_i). ``smallest`` is the paper's mix with
    the norm criterion: that share of the units, those of the smallest norm, goes before all others and distances are
    measured among the rest; their scores lie in [−1, 0).

    Raises:
        InputError: no such distance, or ``smallest`` is not in [0, 1).

    Example:
        >>> from topiarist.plan import Units
        >>> slices = Slices(Units("conv", 4, ()), (torch.tensor([[0.0], [1.0], [2.0], [10.0]]),))
        >>> GeometricMedian()(slices)
        tensor([13., 11., 11., 27.], dtype=torch.float64)
    """

    distance: str = "l2"
    smallest: float = 0.0
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        if self.distance not in _DISTANCES:
            raise InputError(f"no distance is called {self.distance!r} ({nearest(self.distance, _DISTANCES)})")
        if not 0.0 <= self.smallest < 1.0:
            raise InputError(f"the share of smallest norm lies in [0, 1), got {self.smallest!r}")

    def __call__(self, slices: Slices) -> Tensor:
        if not slices.weights:
            return torch.zeros(slices.units.num, dtype=torch.float64)
        filters = making(slices)
        norms = torch.linalg.vector_norm(filters, dim=1)
        first = torch.argsort(norms, stable=True)[: int(self.smallest * len(norms) + 0.5)]
        rest = torch.ones(len(norms), dtype=torch.bool, device=norms.device)
        rest[first] = False
        scores: Tensor = norms / norms.max().clamp(min=torch.finfo(norms.dtype).tiny) / 2 - 1
        scores[rest] = apart(filters[rest], self.distance).sum(1)
        return scores


def apart(filters: Tensor, distance: str) -> Tensor:
    """The distance of each pair of rows: (num units, num units); a zero row has cosine 0 with any other.

    Differences are taken entry by entry: through products of rows, near twins would cancel.

    Example:
        >>> apart(torch.tensor([[1.0, 0.0], [2.0, 0.0]]), "cosine")
        tensor([[0., 0.],
                [0., 0.]])
    """
    if distance == "l2":
        return _l2(filters)
    norms = torch.linalg.vector_norm(filters, dim=1, keepdim=True)
    directions = torch.where(norms > 0, filters / norms, 0.0)
    both = (norms > 0) & (norms > 0).mT
    return torch.where(both, _l2(directions).square() / 2, 1.0).fill_diagonal_(0.0)  # |u − v|² = 2 − 2 cos


def _l2(rows: Tensor) -> Tensor:
    distances: Tensor = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    return distances
