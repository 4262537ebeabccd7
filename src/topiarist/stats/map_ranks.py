"""The rank of feature maps, averaged over samples."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from topiarist.errors import InputError
from topiarist.plan import Member, Units
from topiarist.stats.cut import by_unit
from topiarist.stats.statistic import Statistic, Subject
from topiarist.stats.uses import Use


class MapRanks(Statistic):
    """The average rank of the feature map (height, width) of each unit, as convolutions read it: (num units,).

    A map of one spatial dimension, or of three, is a matrix of its first by all others.
    """

    reads = "inputs"
    watches = "forward"

    def __init__(self, subject: Subject) -> None:
        self._members: dict[str, list[tuple[Units, Member]]] = {}
        for units in subject.units:
            for member in (m for m in units.members if m.side in ("in", "out")):
                self._members.setdefault(member.tensor, []).append((units, member))
        self._seen: dict[tuple[str, bool], tuple[Tensor, int]] = {}

    def on_use(self, use: Use) -> None:
        """Add the ranks of the maps that a convolution reads, and of those that it makes."""
        if use.window is None:
            return
        for units, member in self._members.get(use.weight, ()):
            if member.side == "in" and member.dim == use.in_dim:
                shape = use.inputs.shape
                maps = use.inputs.reshape(len(use.inputs), use.window.groups, -1, *shape[2:])
                self._add(units, by_unit(maps, replace(member, dim=2), units.num), shape[2:], True)
            elif member.side == "out" and use.outputs is not None and use.outputs.shape[1] == len(_unit(member)):
                shape = use.outputs.shape
                self._add(units, by_unit(use.outputs, replace(member, dim=1), units.num), shape[2:], False)

    def _add(self, units: Units, rows: Tensor, shape: torch.Size, is_read: bool) -> None:
        maps = rows.reshape(units.num, -1, shape[0], max(1, shape[1:].numel()))
        ranks = torch.linalg.matrix_rank(maps).double()
        total, num = self._seen.get((units.name, is_read), (torch.zeros(units.num, dtype=torch.float64), 0))
        self._seen[units.name, is_read] = (total + ranks.sum(1), num + ranks.shape[1])

    def of(self, units: Units) -> Tensor:
        """The average rank of each unit's maps.

        Raises:
            InputError: the units are not channels of images.
        """
        for is_read in (True, False):
            if (units.name, is_read) in self._seen:
                total, num = self._seen[units.name, is_read]
                return total / num
        raise InputError(
            f"the units of {units.name!r} are no feature maps: no convolution reads or makes them; keep what makes "
            f"them with keep=[{units.layer!r}], or try saliency='activation-variance'"
        )


def _unit(member: Member) -> Tensor:
    assert member.unit is not None  # noqa: S101 entries have no side
    return member.unit
