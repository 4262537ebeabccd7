"""Knapsack: of all ways to stay within a cost, the one that keeps the most importance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import numpy as np
from torch import Tensor

from topiarist.allocation.base import Candidates, Cost, check_level
from topiarist.allocation.normalize import check, comparable
from topiarist.errors import InputError, nearest
from topiarist.plan import Units

Floats: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
Counts: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

_CLOSE = 1e-9  # costs are sums of floats
_MOST_GROUPS = 64  # groups of one set, unless asked otherwise


@dataclass(frozen=True)
class Knapsack:
    """Keep the units that maximise Σ importance subject to Σ cost ≤ capacity, the best of each layer first.

    Units of a layer go in groups in the order of their scores, so that group g stays only where the better groups do;
    the cost of keeping k groups of layer l is what the model costs then, and what it costs with the fewest: HALP's
    marginal latencies (Shen et al. 2022), for whatever is counted. Costs that fall with k are raised to those of fewer
    units. The choice is exact: dynamic programming over costs in whole steps of 1/``steps`` of the total, rounded up,
    or in units where the costs are whole and no more than ``steps`` in sum.

    A layer's costs are those with all other layers as they are now: a convolution that loses inputs and outputs costs
    less than their sum says, and only the search for the level that meets a `Budget` sees that. Pruning in several
    steps computes the costs anew at each (HALP uses 30). A removal at one level need not contain that at a lower one.

    Args:
        cost: what is counted, ``"params"``, ``"macs"``, ``"bytes"``, ``"units"``, or a function that maps numbers of
            units, by name, to what the model costs with those (a latency, an energy); sets not named are whole.
        group: units per group; None: as few as make at most 64 groups of a layer.
        normalize: one of `topiarist.allocation.normalize`. ``"none"`` is right for criteria that estimate a loss, whose
            scores add up over layers.

    Raises:
        InputError: an argument cannot be used; when called, a cost that is not known.

    Example:
        >>> import torch
        >>> from topiarist.plan import Units
        >>> units = (Units("a", 2, ()), Units("b", 2, ()))
        >>> scores = {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([2.0, 3.0])}
        >>> dear = Knapsack(lambda kept: 3 * kept.get("a", 2) + kept.get("b", 2))
        >>> {k: v.tolist() for k, v in dear(Candidates(units, scores), 0.5).items()}  # of 8, 4 may be spent
        {'a': [True, False], 'b': [True, False]}
    """

    cost: str | Cost = "macs"
    group: int | None = None
    normalize: str = "auto"
    steps: int = 10_000
    needs_budget: ClassVar[bool] = True
    is_nested: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check(self.normalize)
        if (self.group is not None and self.group < 1) or self.steps < 1:
            raise InputError(f"group and steps count from 1, got {self.group!r} and {self.steps!r}")

    def __call__(self, candidates: Candidates, level: float) -> dict[str, Tensor]:
        check_level(level)
        kept, values, costs = candidates.once(self, lambda: self._problem(candidates))
        total = int(sum(cost[-1] for cost in costs))
        chosen = solve(values, costs, total if level == 0 else int((1 - level) * total + _CLOSE))
        return {
            u.name: candidates.lowest(u, u.num - ks[i]) for u, ks, i in zip(candidates.units, kept, chosen, strict=True)
        }

    def _problem(self, candidates: Candidates) -> tuple[list[list[int]], list[Floats], list[Counts]]:
        """Per set of units: how many may stay, what that is worth, and what it costs in whole steps."""
        cost = self._cost(candidates)
        now = {u.name: u.num - candidates.num_gone(u.name) for u in candidates.units}
        scores = comparable(candidates, self.normalize)
        kept = [self._choices(candidates, units) for units in candidates.units]
        costs = [_rising([cost({**now, u.name: k}) for k in ks]) for u, ks in zip(candidates.units, kept, strict=True)]
        values = [
            _worth(scores[u.name], candidates.gone.get(u.name), ks)
            for u, ks in zip(candidates.units, kept, strict=True)
        ]
        return kept, values, _in_steps(costs, self.steps)

    def _cost(self, candidates: Candidates) -> Cost:
        if callable(self.cost):
            return self.cost
        if self.cost == "units":
            return lambda kept: sum(kept.get(u.name, u.num) for u in candidates.units)
        if self.cost not in candidates.costs:
            known = ["units", *candidates.costs]
            raise InputError(f"no cost is called {self.cost!r} ({nearest(self.cost, known)}); or pass a function")
        return candidates.costs[self.cost]

    def _choices(self, candidates: Candidates, units: Units) -> list[int]:
        """How many units may stay: the fewest, and whole groups more up to those that are there now."""
        least, most = units.num - candidates.most(units), units.num - candidates.num_gone(units.name)
        size = self.group or max(1, -(-(most - least) // _MOST_GROUPS))
        return [*range(most, least, -size), least][::-1]


def solve(values: Sequence[Floats], costs: Sequence[Counts], capacity: int) -> list[int]:
    """One choice of each set, so that Σ cost ≤ ``capacity`` and Σ value is the greatest; of equal ones the dearest.

    The multiple-choice knapsack by dynamic programming over capacities (Kellerer et al. 2004, 11.5); the first choice
    of every set costs nothing.

    Example:
        >>> solve([np.array([0.0, 5.0, 6.0]), np.array([0.0, 4.0])], [np.array([0, 2, 3]), np.array([0, 2])], 4)
        [1, 1]
    """
    best = np.zeros(capacity + 1)
    taken: list[Counts] = []
    for value, cost in zip(values, costs, strict=True):
        found, choice = best.copy(), np.zeros(capacity + 1, dtype=np.int64)
        for i in range(1, len(value)):
            if cost[i] <= capacity:
                with_it = best[: capacity + 1 - cost[i]] + value[i]
                better = with_it >= found[cost[i] :]
                found[cost[i] :][better] = with_it[better]
                choice[cost[i] :][better] = i
        best = found
        taken.append(choice)
    chosen = []
    for choice, cost in zip(reversed(taken), reversed(costs), strict=True):
        i = int(choice[capacity])
        capacity -= int(cost[i])
        chosen.append(i)
    return chosen[::-1]


def _worth(scores: Tensor, gone: Tensor | None, kept: Sequence[int]) -> Floats:
    """The importance of keeping so many of the best, beyond the fewest; what is below zero counts nothing."""
    left = scores.detach() if gone is None else scores.detach()[~gone]
    best = np.sort(left.double().clamp(min=0).cpu().numpy())[::-1]
    sums = np.concatenate([[0.0], np.cumsum(best)])
    return np.asarray(sums[list(kept)] - sums[kept[0]])


def _rising(costs: Sequence[float]) -> Floats:
    """What more units cost beyond the fewest, never less than with one unit fewer."""
    return np.maximum.accumulate(np.array(costs, dtype=np.float64) - costs[0])


def _in_steps(costs: Sequence[Floats], steps: int) -> list[Counts]:
    """The costs in whole steps, rounded up."""
    total = float(sum(cost[-1] for cost in costs))
    is_whole = total <= steps and all(np.array_equal(cost, np.round(cost)) for cost in costs)
    scale = 1.0 if is_whole or total == 0 else steps / total
    return [np.ceil(cost * scale - _CLOSE).astype(np.int64) for cost in costs]
