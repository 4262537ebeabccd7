"""Amounts that the literature names directly: a threshold in units of the weights' spread, and the n smallest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor

from topiarist.allocation.base import Candidates, check_level
from topiarist.allocation.per_layer import assign
from topiarist.allocation.select import select
from topiarist.errors import InputError, nearest
from topiarist.plan import Units

_SCOPES = ("global", "layer")


@dataclass(frozen=True)
class Threshold:
    """Remove the weights with |w| < level · q · σ_l, σ_l the standard deviation of layer l's weights (Han et al. 2015).

    Of a normal layer this removes erf(q / √2) of the weights: 0.383 at q = 0.5, 0.683 at q = 1. ``q`` is one number, or
    one per layer by the keys of `PerLayer` (smaller for more sensitive layers; layers that no key fits stay whole).
    σ_l is taken over the weights that are not gone, without Bessel's correction. Scores are not looked at, except
    that where the minimum stops the removal the highest scores stay.

    Raises:
        InputError: q is negative or not finite; when called, units that are not single weights, or a key that fits
            nothing.

    Example:
        >>> from topiarist.plan import Units
        >>> weight = torch.tensor([-3.0, -1.0, 0.5, 3.0])
        >>> candidates = Candidates((Units("w", 4, ()),), {"w": weight.abs()}, weight=lambda name: weight)
        >>> Threshold(q=0.5)(candidates, 1.0)
        {'w': tensor([False,  True,  True, False])}
    """

    q: float | Mapping[str, float]
    needs_budget: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for value in self.q.values() if isinstance(self.q, Mapping) else (self.q,):
            if not 0 <= value < float("inf"):
                raise InputError(f"q must be finite and not negative, got {value!r}")
        if isinstance(self.q, Mapping):
            object.__setattr__(self, "q", MappingProxyType(dict(self.q)))

    def __call__(self, candidates: Candidates, level: float) -> dict[str, Tensor]:
        check_level(level)
        q = assign(self.q if isinstance(self.q, Mapping) else {"*": self.q}, candidates.units)
        return {u.name: _below(candidates, u, level * q.get(u.name, 0.0)) for u in candidates.units}


@dataclass(frozen=True)
class Smallest:
    """Remove the ``n`` lowest scores: of all units together, or of each layer (a layer of fewer loses all it may).

    Level 1 is n itself; units that are gone count towards it.

    Raises:
        InputError: n is negative or not whole, the scope is not known; when called, n is more than all units that may
            go (scope ``"global"``).

    Example:
        >>> from topiarist.plan import Units
        >>> units = (Units("a", 3, ()), Units("b", 1, ()))
        >>> candidates = Candidates(units, {"a": torch.tensor([1.0, 2.0, 3.0]), "b": torch.tensor([9.0])})
        >>> {k: v.tolist() for k, v in Smallest(2, scope="layer")(candidates, 1.0).items()}
        {'a': [True, True, False], 'b': [True]}
    """

    n: int
    scope: str = "global"
    needs_budget: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.n, int) or self.n < 0:
            raise InputError(f"n counts units, 0 or more, got {self.n!r}")
        if self.scope not in _SCOPES:
            raise InputError(f"no scope {self.scope!r} ({nearest(self.scope, _SCOPES)})")

    def __call__(self, candidates: Candidates, level: float) -> dict[str, Tensor]:
        check_level(level)
        num = int(level * self.n + 0.5)
        if self.scope == "layer":
            return {u.name: candidates.lowest(u, num) for u in candidates.units}
        if self.n > candidates.most_of_all:
            raise InputError(f"asked to remove the {self.n} smallest units, at most {candidates.most_of_all} may go")
        return candidates.lowest_of_all(num)


def _below(candidates: Candidates, units: Units, q: float) -> Tensor:
    weight = candidates.weight(units.name).detach().flatten()
    if weight.numel() != units.num:
        raise InputError(
            f"a threshold compares single weights, {units.name!r} has {units.num} units and {weight.numel()} weights; "
            'try structure="weight"'
        )
    gone = candidates.gone.get(units.name, torch.zeros(units.num, dtype=torch.bool, device=weight.device))
    below = gone | (weight.abs() < q * _spread(weight[~gone]))
    if units.name in candidates.protected:
        below &= ~candidates.protected[units.name]
    most = candidates.most(units)
    if int(below.count_nonzero()) <= most:
        return below
    name = units.name
    return select({name: candidates.scores[name]}, most, {name: gone}, keep={name: ~below})[name]


def _spread(weight: Tensor) -> float:
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    return float(weight.std(correction=0)) if weight.numel() else 0.0
