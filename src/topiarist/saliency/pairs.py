"""Units that can stand in for one another: which goes first, and who takes its place."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Merge:
    """Unit ``gone`` is taken over by unit ``kept``, None where no other is left, at a ``cost``."""

    gone: int
    kept: int | None
    cost: float


Merged = Callable[[int, int], float]  # (gone, kept) → how much the kept one matters from now on


def pair_off(
    distance: Tensor,
    matters: Tensor,
    ties: Tensor,
    merged: Merged | None = None,
    among: Sequence[bool] | None = None,
) -> list[Merge]:
    """Remove one unit after the other, each time the one that is cheapest to replace by another that is still there.

    Replacing u by v costs ``matters[u] · distance[u, v]``, as in Srinivas & Babu 2015. Nearest neighbours are kept and
    only those of what has gone looked up again: about n² steps in all.

    Args:
        distance: (num units, num units), how badly column v stands in for row u; the diagonal is not read.
        matters: (num units,), none negative.
        ties: (num units,), of units that cost the same the lowest goes first, then the one of the lowest index.
        merged: called after each removal; what it returns is what the kept unit matters from now on.
        among: which units may go; all by default.

    Example:
        >>> distance = torch.tensor([[0.0, 1.0, 5.0], [1.0, 0.0, 4.0], [5.0, 4.0, 0.0]])
        >>> [(m.gone, m.kept) for m in pair_off(distance, torch.ones(3), torch.tensor([3.0, 2.0, 1.0]))]
        [(1, 0), (2, 0), (0, None)]
    """
    num = len(distance)
    apart = distance.double().cpu().clone().fill_diagonal_(torch.inf)
    matters, ties = matters.double().cpu().clone(), ties.cpu()
    near, twin = apart.min(1) if num else (apart.sum(1), apart.sum(1).long())
    may_go = torch.ones(num, dtype=torch.bool) if among is None else torch.as_tensor(among)
    left, made = may_go.clone(), []
    for _ in range(int(may_go.sum())):
        u = _cheapest(near, matters, ties, left)
        v = int(twin[u]) if bool(torch.isfinite(near[u])) else None
        made.append(Merge(u, v, float(matters[u] * near[u]) if v is not None else torch.inf))
        left[u] = False
        apart[:, u] = torch.inf
        lonely = ((twin == u) & left).nonzero().flatten()
        if len(lonely):
            near[lonely], twin[lonely] = apart[lonely].min(1)
        if merged is not None and v is not None:
            matters[v] = merged(u, v)
    return made


def _cheapest(near: Tensor, matters: Tensor, ties: Tensor, left: Tensor) -> int:
    costs = torch.where(torch.isfinite(near), matters * near, torch.inf).masked_fill(~left, torch.inf)
    lowest = ((costs == costs[left].min()) & left).nonzero().flatten()
    return int(lowest[ties[lowest].argmin()])


def in_order(order: Sequence[int], costs: Sequence[float]) -> Tensor:
    """Scores by which the lowest go first in just this order: float64 of shape (num units,).

    A score is the cost, where costs rise; where they do not, or are infinite, the next number above the one before.

    Example:
        >>> in_order([1, 2, 0], [2.0, 1.0, 4.0])
        tensor([4.0000, 2.0000, 2.0000], dtype=torch.float64)
    """
    scores, last = torch.zeros(len(order), dtype=torch.float64), -math.inf
    for unit, cost in zip(order, costs, strict=True):
        above = 0.0 if last == -math.inf else math.nextafter(last, math.inf)
        last = cost if last < cost < math.inf else above
        scores[unit] = last
    return scores
