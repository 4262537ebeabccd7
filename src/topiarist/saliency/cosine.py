"""Cosine similarity of weights: of two filters that point the same way, one is enough."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topiarist.saliency.base import Slices
from topiarist.saliency.fpgm import apart
from topiarist.saliency.pairs import in_order, pair_off
from topiarist.saliency.sides import making


@dataclass(frozen=True)
class Cosine:
    """How far a unit's weights point away from those of every other: s_j = 1 − max_{i left} cos(F_j, F_i).

    Units go one after the other, and each is compared with those still there: of twins one goes, and not both. Of the
    two most similar the one of smaller norm goes first. F_j are all weights that make unit j; opposite ones are not
    similar, as a rectifier tells them apart. (Ayinde & Zurada 2018, arXiv:1802.07653, cluster by the same similarity.)

    Example:
        >>> from topiarist.plan import Units
        >>> slices = Slices(Units("fc", 3, ()), (torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]),))
        >>> Cosine()(slices)
        tensor([0.0000, 1.0000, 1.0000], dtype=torch.float64)
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, slices: Slices) -> Tensor:
        if not slices.weights:
            return torch.zeros(slices.units.num, dtype=torch.float64)
        filters = making(slices)
        norms = torch.linalg.vector_norm(filters, dim=1)
        merges = pair_off(apart(filters, "cosine"), torch.ones(len(filters)), norms)
        return in_order([m.gone for m in merges], [m.cost for m in merges]).to(filters.device)
