"""Structure ``channel``: every index of a free axis is a unit: a filter, a feature map, a neuron (Li et al. 2017).

A unit is removed from every tensor that shares its axis: the rows of the layer that makes it, norms, biases and
running statistics in between, the columns of all layers that read it, through residual sums and concatenations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from topiarist.errors import InputError
from topiarist.graph import Axes, AxisInfo
from topiarist.plan import Units
from topiarist.structure.base import require_some


@dataclass(frozen=True)
class Channel:
    """One unit an index of an axis that is not a head axis; at least one index of each axis stays.

    With ``round_to`` a unit is that many indices, the lowest together, and a multiple of it stays of every axis (all of
    an axis that is smaller): hardware computes in blocks, and an odd width costs as much as the next multiple.

    Raises:
        InputError: ``round_to`` is less than 1.
    """

    round_to: int = 1
    is_physical: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.round_to < 1:
            raise InputError(f"round_to must be 1 or more, got {self.round_to}; try 8")

    def units(self, axes: Axes, keep: Sequence[str] = ()) -> list[Units]:
        """One set of units per free axis.

        Raises:
            InputError: a pattern of ``keep`` matches no module, or no axis is left.
        """
        units = [_rounded(u, self.round_to, axes) for u in units_of(axes, keep, heads=False)]
        return require_some([u for u in units if u.num > u.minimum], "channel", axes)


def units_of(axes: Axes, keep: Sequence[str], *, heads: bool) -> list[Units]:
    """The units of every free axis that is (or is not) a head axis.

    Axes that shrink only together make one set: each unit takes one step of all of them. It counts for heads where it
    holds a head axis, and for channels where it holds another.
    """
    kept = axes.kept_by(keep)
    found: dict[tuple[tuple[str, int], ...], Units] = {}
    for axis in axes.axes:
        step = axis.step or ((axis.name, 1),)
        together = [axes[name] for name, _ in step]
        if axis.is_head == heads and step not in found and not any(a.pins or a.leaf in kept for a in together):
            found[step] = axis_units(axis) if not axis.step else _stepped(axis, together)
    return list(found.values())


def axis_units(axis: AxisInfo) -> Units:
    """The indices of one axis."""
    return Units(axis.name, axis.size, axis.members, axis.layer, axis.kind, minimum=axis.minimum)


def _rounded(units: Units, to: int, axes: Axes) -> Units:
    """Units of ``to`` indices, the first of what is beyond a multiple.

    Axes that shrink together keep their steps, unless they are of one size and lose one index each.
    """
    step = units.step or ((units.name, 1),)
    if to == 1 or len({(axes[name].size, size) for name, size in step}) > 1 or step[0][1] > 1:
        return units
    return replace(
        units,
        num=-(-units.num // to),
        minimum=-(-units.minimum // to),
        members=(),
        step=tuple((name, to) for name, _ in step),
    )


def _stepped(axis: AxisInfo, together: Sequence[AxisInfo]) -> Units:
    num = min(a.size // size for a, (_, size) in zip(together, axis.step, strict=True))
    return Units(axis.name, num, (), axis.layer, axis.kind, minimum=axis.minimum, step=axis.step)
