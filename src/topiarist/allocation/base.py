"""What every allocation sees (`Candidates`) and is (`Allocation`), and how a recipe's word becomes one."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from topiarist.allocation.select import ranking, select
from topiarist.errors import InputError, nearest
from topiarist.plan import Units

Made = TypeVar("Made")
Cost = Callable[[Mapping[str, int]], float]

_SORTED = 1 << 20  # units of one set whose order is kept; sets of single weights may be much larger


def _no_weight(name: str) -> Tensor:
    raise InputError(f"these candidates carry no weights, asked for that of {name!r}")


@dataclass(frozen=True, eq=False)
class Candidates:
    """The units that compete, and what an allocation may know of them.

    ``scores`` maps each units' name to floats of shape ``(num units,)``, low scores go first; ``weight(name)`` is the
    tensor that the units are named after, signed and in its own shape, for rules that go by spread or shape; ``gone``
    marks the units that an earlier step removed: they stay removed and count as removed; ``protected`` marks those that
    may not go. ``roles`` says in a word what hangs on the units, the same for units of the same kind; ``costs`` maps
    what is counted (``"macs"``) to what the model costs with given numbers of units by name, those not named whole.
    ``are_comparable`` says that scores of different layers compare as they are.

    Raises:
        InputError: names repeat, scores are missing, or a tensor is not of shape ``(num units,)``.
    """

    units: tuple[Units, ...]
    scores: Mapping[str, Tensor]
    weight: Callable[[str], Tensor] = _no_weight
    gone: Mapping[str, Tensor] = field(default_factory=dict)
    protected: Mapping[str, Tensor] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    costs: Mapping[str, Cost] = field(default_factory=dict)
    are_comparable: bool = False
    _known: dict[object, Any] = field(default_factory=dict, init=False, repr=False)
    _places: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        names = [units.name for units in self.units]
        if len(set(names)) != len(names):
            raise InputError(f"units' names must differ, got {names}")
        if set(names) != set(self.scores) or not {*self.gone, *self.protected} <= set(names):
            raise InputError(f"units {names}, scores for {[*self.scores]}, gone of {[*self.gone]}: names must agree")
        for units in self.units:
            for tensor in (part.get(units.name) for part in (self.scores, self.gone, self.protected)):
                if tensor is not None and tensor.shape != (units.num,):
                    raise InputError(
                        f"{units.name!r} has {units.num} units, got a tensor of shape {tuple(tensor.shape)}"
                    )

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What ``make`` returned when it was first asked for ``key``: an allocation is called at many levels."""
        if key not in self._known:
            self._known[key] = make()
        found: Made = self._known[key]
        return found

    def only(self, names: Collection[str]) -> Candidates:
        """The candidates among some of the sets."""
        return replace(
            self,
            units=tuple(units for units in self.units if units.name in names),
            scores={name: scores for name, scores in self.scores.items() if name in names},
            gone={name: gone for name, gone in self.gone.items() if name in names},
            protected={name: stay for name, stay in self.protected.items() if name in names},
        )

    @property
    def num_units(self) -> int:
        """How many units there are, gone ones included."""
        return sum(units.num for units in self.units)

    def num_gone(self, name: str) -> int:
        """How many units of ``name`` are gone already."""
        return int(self.gone[name].count_nonzero()) if name in self.gone else 0

    def most(self, units: Units) -> int:
        """How many of ``units`` may be gone at most: all but the minimum and those protected, and never fewer than are
        gone already."""
        stay = int(self.protected[units.name].count_nonzero()) if units.name in self.protected else 0
        return max(units.num - max(units.minimum, stay), self.num_gone(units.name))

    @property
    def most_of_all(self) -> int:
        """How many units may be gone at most, over all sets."""
        return sum(self.most(units) for units in self.units)

    def lowest(self, units: Units, num: int) -> Tensor:
        """Mark the ``num`` lowest of one set, as far as what is gone and the minimum allow: bool ``(num units,)``."""
        num = min(max(num, self.num_gone(units.name)), self.most(units))
        scores = self.scores[units.name]
        if units.num > _SORTED:
            gone, stay = (
                {units.name: part[units.name]} if units.name in part else {} for part in (self.gone, self.protected)
            )
            return select({units.name: scores}, num, gone, stay)[units.name]
        return (self._ranks(units.name) < num).to(scores.device)

    def _ranks(self, name: str) -> Tensor:
        """The place of each unit of one set in the order in which they go, those gone first and those protected last;
        made once, as levels are many."""
        if name not in self._places:
            order = ranking(self.scores[name])
            if name in self.protected:
                last = self.protected[name].cpu()[order]
                order = torch.cat([order[~last], order[last]])
            if name in self.gone:
                first = self.gone[name].cpu()[order]
                order = torch.cat([order[first], order[~first]])
            self._places[name] = torch.empty_like(order).scatter_(0, order, torch.arange(order.numel()))
        return self._places[name]

    def lowest_of_all(self, num: int, scores: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Mark the ``num`` lowest over all sets in one ranking, as far as what is gone and the minimums allow.

        ``scores`` are other scores to rank by, of the same order within each set.
        """
        ranked = {units.name: (scores or self.scores)[units.name] for units in self.units}
        num = min(max(num, sum(self.num_gone(units.name) for units in self.units)), self.most_of_all)
        stay = {  # those protected, and the best, up to the minimum
            u.name: ~self.lowest(u, u.num) if u.minimum else self.protected[u.name]
            for u in self.units
            if u.minimum or u.name in self.protected
        }
        return select(ranked, num, self.gone, stay)


class Allocation(Protocol):
    """How a budget is spread over layers: any callable of this shape will do.

    ``level`` runs from 0, nothing goes beyond what is gone, to 1, all goes but each `Units.minimum`; what goes at one
    level goes at every higher one. An allocation that names its own amounts has ``needs_budget = False``: for it,
    level 1 is the amounts themselves and lower levels are the way to them. A callable without the attribute needs one.
    ``is_nested = False`` says that more need not go where the level is higher.
    """

    def __call__(self, candidates: Candidates, level: float) -> dict[str, Tensor]:
        """Per units' name a bool tensor ``(num units,)``, True where the unit goes."""
        ...


def needs_budget(allocation: Allocation) -> bool:
    """Whether the amount comes from a budget (most allocations) or from the allocation itself."""
    return bool(getattr(allocation, "needs_budget", True))


def needs_scores(allocation: Allocation) -> bool:
    """Whether scores decide how much goes of each set (most allocations), or only what."""
    return bool(getattr(allocation, "needs_scores", True))


def share(fraction: float, num: int) -> int:
    """The fraction of ``num`` in whole units, half up: ⌊fraction · num + ½⌋.

    Example:
        >>> share(0.25, 10)
        3
    """
    return math.floor(fraction * num + 0.5)


def check_level(level: float) -> None:
    """Refuse levels outside [0, 1]."""
    if not 0.0 <= level <= 1.0:
        raise InputError(f"a level lies in [0, 1], got {level!r}")


def check_removed(removed: Mapping[str, Tensor], candidates: Candidates) -> None:
    """Refuse what an allocation of the user's may return wrongly.

    Raises:
        InputError: names, shapes or dtypes are not those of the candidates, or a unit that was gone comes back.
    """
    for units in candidates.units:
        mask = removed.get(units.name)
        if mask is None or mask.shape != (units.num,) or mask.dtype != torch.bool:
            found = "nothing" if mask is None else f"{mask.dtype} of shape {tuple(mask.shape)}"
            raise InputError(
                f"the allocation returned {found} for {units.name!r}, expected bool of shape ({units.num},)"
            )
        if units.name in candidates.gone and bool((candidates.gone[units.name] & ~mask).any()):
            raise InputError(f"the allocation brings back units of {units.name!r} that are gone")
    if len(removed) > len(candidates.units):
        unknown = next(name for name in removed if name not in candidates.scores)
        raise InputError(f"the allocation returned {unknown!r}, which is no units' name ({_near(unknown, candidates)})")


def _near(name: str, candidates: Candidates) -> str:
    return nearest(name, [units.name for units in candidates.units])
