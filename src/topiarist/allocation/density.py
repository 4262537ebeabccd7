"""From a rule for the density of each layer to what goes: its one parameter is solved for the density of the whole.

Allocations of this kind differ only in the rule; within a layer the lowest scores go.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from topiarist.allocation.base import Candidates, check_level, share

Rule = Callable[[float], Mapping[str, float]]

_NUM_HALVINGS = 200  # more than a float has values in between


def remove_to(candidates: Candidates, level: float, rule: Rule, low: float, high: float) -> dict[str, Tensor]:
    """Remove the fraction ``level`` of all units, layers having the densities ``rule(t)`` for the one t that gives it.

    Args:
        rule: maps t to the density of each set of units, by name, in [0, 1]; it grows with t.
        low: a t at which nothing is left that may go.
        high: a t at which everything is.

    Example:
        >>> import torch
        >>> from topiarist.plan import Units
        >>> candidates = Candidates((Units("a", 4, ()), Units("b", 4, ())), {k: torch.arange(4.0) for k in "ab"})
        >>> removed = remove_to(candidates, 0.5, lambda t: {"a": min(1.0, 3 * t), "b": min(1.0, t)}, 0.0, 1.0)
        >>> {k: int(v.sum()) for k, v in removed.items()}
        {'a': 1, 'b': 3}
    """
    check_level(level)
    found = densities({units.name: units.num for units in candidates.units}, 1 - level, rule, low, high)
    return {u.name: candidates.lowest(u, share(1 - found[u.name], u.num)) for u in candidates.units}


def densities(nums: Mapping[str, int], density: float, rule: Rule, low: float, high: float) -> dict[str, float]:
    """The densities by name with Σ density_l · n_l = ``density`` · Σ n_l; where no t gives that, the nearest ones."""
    target = density * sum(nums.values())
    for _ in range(_NUM_HALVINGS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        found = rule(middle)
        if sum(found[name] * num for name, num in nums.items()) < target:
            low = middle
        else:
            high = middle
    return dict(rule(low if density == 0 else high))


def clipped(value: float, low: float = 0.0, high: float = 1.0) -> float:
    """``value``, but no less than ``low`` and no more than ``high``."""
    return float(np.clip(value, low, high))


def remaining(candidates: Candidates, name: str) -> Tensor:
    """The scores of the units that are not gone, as float64 on the CPU: ``(num units,)``."""
    scores = candidates.scores[name].detach().double().cpu()
    return scores[~candidates.gone[name].cpu()] if name in candidates.gone else scores


def joined(candidates: Candidates, names: list[str]) -> Tensor:
    """The scores of several sets of units that are not gone, one after the other: ``(num units,)``."""
    return torch.cat([remaining(candidates, name) for name in names])
