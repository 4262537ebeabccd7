"""Amounts named per layer, by pattern or by type."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import ClassVar, TypeVar

from torch import Tensor

from topiarist.allocation.base import Candidates, check_level, share
from topiarist.errors import BudgetError, InputError, nearest
from topiarist.plan import Units

Value = TypeVar("Value")


@dataclass(frozen=True)
class PerLayer:
    """Remove the named fraction of each layer: k_l = ⌊level · ratio_l · n_l + ½⌋ of its lowest scores.

    A key is an fnmatch pattern over layer names (``"features.*"``) and units' names (``"fc1.weight"``), or the class
    name of a module (``"Linear"``). The first key that fits decides, in the order of the dict; layers that no key
    fits stay whole. Level 1 is the ratios themselves.

    Raises:
        InputError: a ratio lies outside [0, 1]; when called, a key that fits nothing.
        BudgetError: when called, a layer whose minimum stops it more than one unit short of its ratio.

    Example:
        >>> import torch
        >>> from topiarist.plan import Units
        >>> units = (Units("fc1.weight", 2, (), "fc1", "Linear"), Units("fc2.weight", 2, (), "fc2", "Linear"))
        >>> scores = {"fc1.weight": torch.tensor([1.0, 2.0]), "fc2.weight": torch.tensor([1.0, 2.0])}
        >>> removed = PerLayer({"fc2": 1.0, "Linear": 0.5})(Candidates(units, scores), 1.0)
        >>> {k: v.tolist() for k, v in removed.items()}
        {'fc1.weight': [True, False], 'fc2.weight': [True, True]}
    """

    ratios: Mapping[str, float]
    needs_scores: ClassVar[bool] = False
    needs_budget: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for key, ratio in self.ratios.items():
            if not 0.0 <= ratio <= 1.0:
                raise InputError(f"the ratio of {key!r} must lie in [0, 1], got {ratio!r}")
        object.__setattr__(self, "ratios", MappingProxyType(dict(self.ratios)))

    def __call__(self, candidates: Candidates, level: float) -> dict[str, Tensor]:
        check_level(level)
        ratios = assign(self.ratios, candidates.units)
        return {u.name: self._remove(candidates, u, level * ratios.get(u.name, 0.0)) for u in candidates.units}

    def _remove(self, candidates: Candidates, units: Units, ratio: float) -> Tensor:
        num, most = share(ratio, units.num), candidates.most(units)
        if num > most + 1:
            raise BudgetError(f"asked to remove {num} of {units.num} units of {units.name!r}, at most {most} may go")
        return candidates.lowest(units, num)


def assign(values: Mapping[str, Value], units: Iterable[Units]) -> dict[str, Value]:
    """Per units' name the value of the first key that fits it; names that no key fits are left out.

    Raises:
        InputError: a key fits nothing at all.
    """
    units = list(units)
    for key in values:
        if not any(_fits(key, u) for u in units):
            words = dict.fromkeys(word for u in units for word in (u.layer, u.kind, u.name) if word)
            raise InputError(f"{key!r} fits no layer, units or module type ({nearest(key, words)})")
    found = {u.name: next((values[key] for key in values if _fits(key, u)), None) for u in units}
    return {name: value for name, value in found.items() if value is not None}


def _fits(key: str, units: Units) -> bool:
    return key == units.kind or fnmatchcase(units.layer, key) or fnmatchcase(units.name, key)
