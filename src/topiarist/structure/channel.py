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

_NUM_SHOWN = 4  # axes in a message


@dataclass(frozen=True)
class Channel:
    """One unit an index of an axis that is not a head axis; at least one index of each axis stays.

    With ``round_to`` a unit is that many indices, the lowest together, and a multiple of it stays of every axis that
    loses any: hardware computes in blocks, and an odd width costs as much as the next multiple (docs/rounding.md).
    Axes that shrink only together keep a multiple each, but for heads, which are no channels; where no cut leaves one,
    they stay whole.

    Raises:
        InputError: ``round_to`` is no whole number from 1 up.
    """

    round_to: int = 1
    is_physical: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.round_to, bool) or not isinstance(self.round_to, int) or self.round_to < 1:
            raise InputError(f"round_to must be a whole number, 1 or more, got {self.round_to!r}; try 8")

    def units(self, axes: Axes, keep: Sequence[str] = ()) -> list[Units]:
        """One set of units per free axis.

        Raises:
            InputError: a pattern of ``keep`` matches no module, or no axis is left.
        """
        whole = require_some([u for u in units_of(axes, keep, heads=False) if u.num > u.minimum], "channel", axes)
        units = [found for u in whole if (found := _rounded(u, axes, self.round_to)) is not None]
        if not units:
            sizes = ", ".join(f"{u.name}: {axes[u.name].size}" for u in whole[:_NUM_SHOWN])
            raise InputError(
                f"no cut leaves a multiple of round_to={self.round_to} channels ({sizes}); try a smaller one"
            )
        return units


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
        if (
            axis.is_head == heads
            and not axis.is_expert
            and step not in found
            and not any(a.pins or a.leaf in kept for a in together)
        ):
            found[step] = axis_units(axis) if not axis.step else _stepped(axis, together)
    return list(found.values())


def axis_units(axis: AxisInfo) -> Units:
    """The indices of one axis."""
    return Units(axis.name, axis.size, axis.members, axis.layer, axis.kind, minimum=axis.minimum)


def _rounded(units: Units, axes: Axes, to: int) -> Units | None:
    """Units of as many steps as leave a multiple of ``to`` of every axis of channels, the first of what is beyond a
    multiple; None where no cut does."""
    if to == 1:
        return units
    step = units.step or ((units.name, 1),)
    channels = [(axes[name].size, size) for name, size in step if not axes[name].is_head]
    stay = [
        num
        for num in range(units.num - 1, units.minimum - 1, -1)  # steps that may stay: all of one remainder
        if all((whole - (units.num - num) * size) % to == 0 for whole, size in channels)
    ]
    if not stay:
        return None
    first = units.num - stay[0]
    several = stay[0] - stay[1] if len(stay) > 1 else first
    return replace(
        units,
        num=len(stay) + 1,
        minimum=1,
        members=(),
        step=tuple((name, several * size) for name, size in step),
        first=tuple(first * size for _, size in step),
    )


def _stepped(axis: AxisInfo, together: Sequence[AxisInfo]) -> Units:
    num = min(a.size // size for a, (_, size) in zip(together, axis.step, strict=True))
    first = tuple(size for _, size in axis.step)
    return Units(axis.name, num, (), axis.layer, axis.kind, minimum=axis.minimum, step=axis.step, first=first)
