"""LAMP: one ranking of all layers by what a removal distorts, relative to what is left of the layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topiarist.allocation.base import Candidates, check_level, share
from topiarist.errors import InputError


@dataclass(frozen=True)
class Lamp:
    """Remove the lowest k = ⌊level · N + ½⌋ of all N units by s_u² / Σ_{v ≥ u} s_v², the sum over a layer's own units.

    s is the score (|w| where units are weights and the saliency is a magnitude), units of a layer are in ascending
    order, and those gone are left out (Lee et al. 2021, "Layer-adaptive sparsity for the magnitude-based pruning").
    Scaling all scores of a layer changes nothing. The highest unit of a layer has 1 and every other at most ½: no
    layer is emptied before all others are down to one unit.

    Raises:
        InputError: when called, scores that are negative: they are no magnitudes.

    Example:
        >>> from topiarist.plan import Units
        >>> units = (Units("a", 2, ()), Units("b", 2, ()))
        >>> candidates = Candidates(units, {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([10.0, 10.0])})
        >>> {k: v.tolist() for k, v in Lamp()(candidates, 0.5).items()}
        {'a': [True, False], 'b': [True, False]}
    """

    needs_budget: ClassVar[bool] = True

    def __call__(self, candidates: Candidates, level: float) -> dict[str, Tensor]:
        check_level(level)
        scores = candidates.once(self, lambda: {u.name: _of_set(candidates, u.name) for u in candidates.units})
        return candidates.lowest_of_all(share(level, candidates.num_units), scores)


def lamp(scores: Tensor) -> Tensor:
    """The LAMP scores of one layer: float64 ``(num units,)``. Of equal scores the earlier is the lower.

    Example:
        >>> [round(1 / x, 6) for x in lamp(torch.tensor([1.0, 2.0, 3.0])).tolist()]
        [14.0, 3.25, 1.0]
    """
    order = torch.argsort(scores, stable=True)
    ascending = scores[order].double()
    finite = ascending[ascending.isfinite()]
    top = finite[-1] if len(finite) and finite[-1] > 0 else ascending.new_ones(())
    squares = (finite / top).square()
    left = squares.flip(0).cumsum(0).flip(0)
    num_left = torch.arange(len(finite), 0, -1, dtype=squares.dtype, device=squares.device)
    found = torch.where(left > 0, squares / left, 1 / num_left)  # where all that is left is zero: the limit of equals
    result = torch.full_like(ascending, torch.inf)  # a score of infinity stays one
    result[order[: len(finite)]] = found.cummax(0).values
    return result


def _of_set(candidates: Candidates, name: str) -> Tensor:
    scores = candidates.scores[name].detach()
    if bool((scores < 0).any()):
        raise InputError(f"LAMP ranks magnitudes, {name!r} has negative scores; try allocation='global'")
    if name not in candidates.gone:
        return lamp(scores)
    gone = candidates.gone[name].to(scores.device)
    result = torch.zeros(scores.shape, dtype=torch.float64, device=scores.device)
    result[~gone] = lamp(scores[~gone])
    return result
