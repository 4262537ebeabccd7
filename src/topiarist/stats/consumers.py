"""Who consumes units, and how what they lose is moved to others of them: the arithmetic of absorbing units."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from topiarist.plan import Member, Units
from topiarist.stats.cut import by_unit
from topiarist.stats.statistic import Statistic, Subject


class Absorption(NamedTuple):
    """What can be moved: the units' weights onto one another, and constants into their consumers' biases."""

    weights: bool
    constants: bool


class Consumers(Statistic):
    """The consumers of every set of units; reads no data. For criteria that merge units: it knows what goes where."""

    reads = "nothing"

    def __init__(self, subject: Subject) -> None:
        self.units = subject.units
        axes = subject.axes
        self._biases: Mapping[str, str] = {} if axes is None else axes.biases
        self._shared = set() if axes is None else {info.tied_to for info in axes.tensors.values() if info.tied_to}

    def of(self, units: Units) -> Absorption:
        """Whether weights can be moved, as those that serve elsewhere as well cannot, and constants too, as they cannot
        where a consumer has no bias."""
        members = [m for m in units.members if m.side == "in"]
        weights = bool(members) and not any(m.tensor in self._shared for m in members)
        return Absorption(weights, weights and all(m.tensor in self._biases for m in members))

    def gone(self, units: Units, removed: Mapping[str, Tensor]) -> Tensor:
        """Which units go, by the masks of parameters: bool (num units,)."""
        rows = [by_unit(removed[m.tensor], m, units.num).all(1) for m in units.members if m.tensor in removed]
        return torch.stack(rows).all(0).cpu() if rows else torch.zeros(units.num, dtype=torch.bool)

    def absorb(
        self, weights: dict[str, Tensor], units: Units, gone: int, kept: int | None, scale: float, constant: float
    ) -> None:
        """Let unit ``kept`` stand in for unit ``gone``, z_gone ≈ scale · z_kept + constant, in all that consumes them.

        w_kept += scale · w_gone; b += constant · w_gone, summed over the unit's features and places of a kernel, which
        is exact but where a convolution pads its input with zeros. ``weights`` is changed entry by entry.
        """
        for member in (m for m in units.members if m.side == "in"):
            assert member.dim is not None  # noqa: S101 entries have no side
            weight = weights[member.tensor] = weights[member.tensor].clone()
            places = weight.movedim(member.dim, 0)
            taken = places[_positions(member, gone)]
            if kept is not None:
                places[_positions(member, kept)] += scale * taken
            name = self._biases.get(member.tensor)
            if name is not None and constant:
                features = taken.double().movedim(0, member.dim)
                outputs = next(d for d in range(features.dim()) if d != member.dim)
                shift = features.sum([d for d in range(features.dim()) if d != outputs])
                weights[name] = weights[name] + (constant * shift).to(weights[name].dtype)

    def scale(self, weights: dict[str, Tensor], units: Units, scales: Tensor) -> None:
        """Multiply what consumes each unit by its own number, float64 (num units,)."""
        for member in (m for m in units.members if m.side == "in"):
            assert member.dim is not None  # noqa: S101 entries have no side
            assert member.unit is not None  # noqa: S101
            weight = weights[member.tensor]
            factor = torch.where(member.unit >= 0, scales[member.unit.clamp(min=0)], 1.0)
            shape = [1] * weight.dim()
            shape[member.dim] = -1
            weights[member.tensor] = weight * factor.view(shape).to(weight)


def _positions(member: Member, unit: int) -> Tensor:
    assert member.unit is not None  # noqa: S101 entries have no side
    return (member.unit == unit).nonzero().flatten()
