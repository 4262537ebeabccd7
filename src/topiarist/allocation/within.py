"""Meet what can only be measured: predict, cut, measure, and correct."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from topiarist.errors import BudgetError

Removal = Mapping[str, Tensor]

TOLERANCE = 0.05
_MOST_TRIALS = 6  # which are measured
_MOST_CEILINGS = 30
_CLOSE = 1e-3


@dataclass(frozen=True, eq=False)
class Trial:
    """A removal, what was predicted for it, and what was measured."""

    removed: Removal
    predicted: float
    measured: float


def within(
    target: float,
    solve: Callable[[float], tuple[Removal, float]],
    furthest: Callable[[], tuple[Removal, float]],
    measure: Callable[[Removal], float],
) -> tuple[Trial, str]:
    """A removal whose measured cost is the target, within 5 %, and what there is to say where it is not.

    The prediction is asked for a ceiling, the result measured, and the ceiling moved by the ratio of the two, or, where
    that leaves the bracket of ceilings known to be too low and too high, to the bracket's geometric middle.

    Args:
        solve: maps a ceiling on the predicted cost to a removal and its predicted cost.
        furthest: the removal of all that may go.
        measure: the cost of a removal.

    Raises:
        BudgetError: all that may go is gone, and more than the target is measured.

    Example:
        >>> import torch
        >>> def solve(ceiling):  # predicts a third of what 30 units of 1 ms each really cost
        ...     num = min(30, int(3 * ceiling))
        ...     return {"a": torch.arange(30) >= num}, num / 3
        >>> best, note = within(12.0, solve, lambda: solve(0), lambda r: 1.0 * int((~r["a"]).sum()))
        >>> best.measured, note
        (12.0, '')
    """
    trials: list[Trial] = []
    low, high, ceiling = 0.0, math.inf, target
    for _ in range(_MOST_CEILINGS):
        why = ""
        try:
            removed, predicted = solve(ceiling)
        except BudgetError as error:
            why = str(error)
            removed, predicted = furthest()
        trial = next((t for t in trials if _same(removed, t.removed)), None)
        is_new = trial is None
        if trial is None:
            if len(trials) == _MOST_TRIALS:
                break
            trial = Trial(removed, predicted, measure(removed))
            trials.append(trial)
        if abs(trial.measured / target - 1) <= TOLERANCE:
            return trial, ""
        if trial.measured < target and not any(bool(gone.any()) for gone in removed.values()):
            return trial, f"nothing needs to go: the whole model takes {trial.measured:.4g}"
        if trial.measured > target and why:
            raise BudgetError(
                f"asked for {target:g}, and {trial.measured:.4g} is measured when all goes that may "
                f"({predicted:.4g} were predicted): {why}"
            )
        low, high = (max(low, ceiling), high) if trial.measured < target else (low, min(high, ceiling))
        ceiling = _next(low, high, ceiling * target / trial.measured if is_new else math.nan)
        if math.isfinite(high) and high - low <= _CLOSE * high:
            break
    return _best(trials, target)


def _next(low: float, high: float, guess: float) -> float:
    """The guess where it lies in the bracket, else the middle of the bracket, or half or twice its only end."""
    if low < guess < high:
        return guess
    if low and math.isfinite(high):
        return math.sqrt(low * high)
    return 2 * low if low else high / 2


def _best(trials: list[Trial], target: float) -> tuple[Trial, str]:
    """The dearest removal that is no dearer than the target, else the cheapest, and how far off it is."""
    met = [trial for trial in trials if trial.measured <= target]
    best = max(met, key=lambda t: t.measured) if met else min(trials, key=lambda t: t.measured)
    tried = ", ".join(f"{t.measured:.4g} (predicted {t.predicted:.4g})" for t in trials)
    return best, (
        f"{best.measured:.4g} is measured, {best.measured / target - 1:+.1%} of the {target:g} asked for: of the "
        f"removals tried none came nearer: {tried}. Units are too large a step, or the clock is disturbed"
    )


def _same(one: Removal, other: Removal) -> bool:
    return all(bool((one[name] == other[name]).all()) for name in one)
