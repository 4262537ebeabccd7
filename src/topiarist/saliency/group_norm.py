"""Group norm: every tensor that a unit lives in has one vote, and groups are compared by what is usual in each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topiarist.errors import InputError, nearest
from topiarist.saliency.base import Slices

_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda parts: parts.mean(0),
    "sum": lambda parts: parts.sum(0),
    "max": lambda parts: parts.amax(0),
    "first": lambda parts: parts[0],
}
_NORMALISATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": torch.ones_like,
    "mean": lambda scores: scores.mean(),
    "sum": lambda scores: scores.sum(),
    "max": lambda scores: scores.amax(),
    "l2": torch.linalg.vector_norm,
}


@dataclass(frozen=True)
class GroupNorm:
    """The squared norms of a unit's members, reduced over members m and divided by what its group has:
    s_j = R_m Σ_i |w^m_ji|^p / N_k(R_m Σ_i |w^m_ki|^p).

    With p = 2, R and N the mean this is the group importance of DepGraph (Fang et al. 2023, F12): a tensor with many
    elements a unit does not drown one with few in the mean over groups, since each group has mean 1. ``reduction`` is
    ``"mean"``, ``"sum"``, ``"max"`` or ``"first"`` (the layer that makes the units); ``normalisation`` is ``"mean"``,
    ``"sum"``, ``"max"``, ``"l2"`` or ``"none"``. A group that is zero throughout stays so.

    Raises:
        InputError: p is neither 1 nor 2, or a word is not known.

    Example:
        >>> from topiarist.plan import Units
        >>> slices = Slices(Units("fc", 2, ()), (torch.tensor([[3.0], [0.0]]), torch.tensor([[1.0], [2.0]])))
        >>> GroupNorm()(slices)  # squares 9, 0 and 1, 4: means 5, 2, over their mean 3.5
        tensor([1.4286, 0.5714], dtype=torch.float64)
    """

    p: int = 2
    reduction: str = "mean"
    normalisation: str = "mean"
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        if self.p not in (1, 2):
            raise InputError(f"a group norm has p = 1 or 2, got {self.p!r}")
        for what, known in (("reduction", _REDUCTIONS), ("normalisation", _NORMALISATIONS)):
            word = getattr(self, what)
            if word not in known:
                raise InputError(f"no {what} is called {word!r} ({nearest(str(word), known)})")

    def __call__(self, slices: Slices) -> Tensor:
        if not slices.weights:
            return torch.zeros(slices.units.num, dtype=torch.float64)
        device = slices.weights[0].device
        parts = torch.stack([w.detach().double().abs().pow(self.p).sum(1).to(device) for w in slices.weights])
        scores = _REDUCTIONS[self.reduction](parts)
        usual = _NORMALISATIONS[self.normalisation](scores)
        return scores / torch.where(usual == 0, 1, usual)
