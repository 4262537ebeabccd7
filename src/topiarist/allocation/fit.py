"""From a budget to what goes: find the level at which an allocation meets it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from topiarist.allocation.base import Allocation, Candidates, check_removed, needs_budget
from topiarist.errors import BudgetError, InputError, nearest
from topiarist.plan import Budget, Units

Price = Callable[[Mapping[str, Tensor]], Mapping[str, float]]

_CLOSE = 1e-9  # fractions nearer than this are equal: prices are sums of floats
_FINEST = 1e-12  # levels nearer than this are equal: no layer has that many units
_COARSEST = 1e-5  # the same where every level is a problem of its own
_NUM_SHOWN = 8  # names in a message


def fit(
    allocation: Allocation, candidates: Candidates, budget: Budget | None, price: Price
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Find what ``allocation`` removes to meet ``budget``, within one unit.

    The level is bracketed by regula falsi and bisection until the two sides differ by at most one unit per set; of
    those units as many go, in the order of the sets, as the budget needs. ``sparsity`` is met as nearly as units
    allow (half up, so that Global and Uniform remove exactly ⌊s · N + ½⌋); the others are ceilings, and the first
    removal that does not exceed them is taken. Where the removal at one level does not contain that at every lower one
    (``is_nested = False``: `Knapsack`) the least removal of a bisection that is enough is taken as it is. An allocation
    with its own amounts takes no budget.

    Args:
        price: maps what goes to ``{"sparsity": …, "compression": …, "macs": …, "params": …, "bytes": …}``, in the
            words of `Budget`; only the budget's own unit is needed.

    Returns:
        What goes, per units' name a bool tensor ``(num units,)``, and its price.

    Raises:
        InputError: a budget is missing or not wanted, or allocation or price return what cannot be used.
        BudgetError: no amount of removal meets the budget, or the allocation jumps over it; the message names the
            nearest values that can be had and what limits them.

    Example:
        >>> import torch
        >>> from topiarist.allocation.global_ import Global
        >>> from topiarist.plan import Units
        >>> candidates = Candidates((Units("w", 4, ()),), {"w": torch.tensor([4.0, 1.0, 3.0, 2.0])})
        >>> removed, achieved = fit(Global(), candidates, Budget(sparsity=0.5),
        ...                         lambda removed: {"sparsity": float(removed["w"].sum()) / 4})
        >>> removed["w"].tolist(), achieved
        ([False, True, False, True], {'sparsity': 0.5})
    """
    if budget is None:
        if needs_budget(allocation):
            raise InputError(f"{allocation} needs a budget; try budget=Budget(sparsity=0.5)")
        removed = allocation(candidates, 1.0)
        check_removed(removed, candidates)
        return removed, dict(price(removed))
    if not needs_budget(allocation):
        raise InputError(f"{allocation} has its own amounts and takes no budget, got {budget!r}")
    search = _Search(allocation, candidates, budget, price)
    best = search.first_guess() or search.nearest()
    return best.removed, best.prices


@dataclass(frozen=True)
class _Point:
    """A removal on the way, its prices, and the fraction removed that they mean in the budget's unit."""

    removed: dict[str, Tensor]
    prices: dict[str, float]
    fraction: float


@dataclass(frozen=True)
class _Search:
    allocation: Allocation
    candidates: Candidates
    budget: Budget
    price: Price

    @property
    def target(self) -> float:
        """The fraction to remove; of a latency above that of the whole model less than none."""
        return self.budget.removed_at(self.budget.value)

    def at(self, level: float) -> _Point:
        removed = self.allocation(self.candidates, level)
        check_removed(removed, self.candidates)
        return self.point(removed)

    def point(self, removed: dict[str, Tensor]) -> _Point:
        prices, unit = dict(self.price(removed)), self.budget.unit
        if unit not in prices:
            raise InputError(f"nothing prices {unit} here ({nearest(unit, prices)})")
        return _Point(removed, prices, self.budget.removed_at(prices[unit]))

    def enough(self, point: _Point) -> bool:
        return point.fraction >= self.target - _CLOSE

    def first_guess(self) -> _Point | None:
        """For sparsity, the level that says so: the answer of an allocation whose levels are fractions of all units."""
        if self.budget.unit != "sparsity":
            return None
        point = self.at(self.target)
        gap = (point.fraction - self.target) * self.candidates.num_units
        return point if -0.5 + _CLOSE < gap <= 0.5 + _CLOSE else None

    def nearest(self) -> _Point:
        below, above = self.at(0.0), self.at(1.0)
        if self.enough(below):
            return self.within_reach(below, f"{self.num_gone()} units are gone already")
        if not self.enough(above):
            return self.within_reach(above, self.limits(above))
        if not getattr(self.allocation, "is_nested", True):
            return self.highest_that_fits(above)
        below, above = self.last_units(*self.bracket(below, above))
        if _largest_step(below, above) > 1:
            raise self.error("the allocation jumps over it", below, above)
        middle = (below.fraction + above.fraction) / 2
        return below if self.budget.unit == "sparsity" and self.target < middle - _CLOSE else above

    def highest_that_fits(self, best: _Point) -> _Point:
        """The last removal of a bisection that is enough, where one removal need not contain another."""
        low, high = 0.0, 1.0
        while high - low > _COARSEST:
            level = (low + high) / 2
            point = self.at(level)
            if self.enough(point):
                high = level
                best = min(best, point, key=lambda p: p.fraction)
            else:
                low = level
        return best

    def bracket(self, below: _Point, above: _Point) -> tuple[_Point, _Point]:
        """Two removals around the budget that differ by a unit per set, or that hardly a level comes between."""
        low, high, halve = 0.0, 1.0, False
        while high - low > _FINEST and _largest_step(below, above) > 1:
            part = (self.target - below.fraction) / (above.fraction - below.fraction)
            part = 0.5 if halve else min(max(part, 0.01), 0.99)
            halve = not halve
            level = low + part * (high - low)
            point = self.at(level)
            if self.enough(point):
                above, high = point, level
            else:
                below, low = point, level
        return below, above

    def last_units(self, below: _Point, above: _Point) -> tuple[_Point, _Point]:
        """Take over the sets of ``above`` one by one: two removals around the budget that differ in one set."""
        names = [n for n in below.removed if not below.removed[n].equal(above.removed[n])]
        while len(names) > 1:
            half = names[: len(names) // 2]
            point = self.point({n: (above if n in half else below).removed[n] for n in below.removed})
            if self.enough(point):
                above, names = point, half
            else:
                below, names = point, names[len(half) :]
        return below, above

    def within_reach(self, point: _Point, limit: str) -> _Point:
        """Accept the end of the range where it meets the budget, for sparsity within one unit."""
        if self.budget.unit == "sparsity":
            fits = abs(point.fraction - self.target) * self.candidates.num_units <= 1 + _CLOSE
        else:
            fits = self.enough(point)
        if not fits:
            raise self.error(limit, point)
        return point

    def error(self, limit: str, *points: _Point) -> BudgetError:
        unit = self.budget.unit
        found = " and ".join(f"{unit}={point.prices[unit]:.6g}" for point in points)
        return BudgetError(f"asked for {unit}={self.budget.value:g}, nearest is {found}: {limit}")

    def num_gone(self) -> int:
        return sum(self.candidates.num_gone(units.name) for units in self.candidates.units)

    def limits(self, point: _Point) -> str:
        """What stops a removal that goes as far as it can."""
        stay = [(u, u.num - int(point.removed[u.name].count_nonzero())) for u in self.candidates.units]
        held = [f"{u.name!r} keeps {num}{_of_several(u)}" for u, num in stay if num]
        shown = ", ".join(held[:_NUM_SHOWN]) + (", …" if len(held) > _NUM_SHOWN else "")
        return f"all goes that may, {shown}" if held else "all units go, the rest is not prunable"


def _of_several(units: Units) -> str:
    return f" × {dict(units.step).get(units.name, 1)}" if units.step else ""


def _largest_step(one: _Point, other: _Point) -> int:
    """By how many units the two removals differ in the set where they differ most."""
    return max((int((one.removed[n] ^ other.removed[n]).count_nonzero()) for n in one.removed), default=0)
