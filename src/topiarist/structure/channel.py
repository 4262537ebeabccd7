"""Structure ``channel``: every index of a free axis is a unit: a filter, a feature map, a neuron (Li et al. 2017).

A unit is removed from every tensor that shares its axis: the rows of the layer that makes it, norms, biases and
running statistics in between, the columns of all layers that read it, through residual sums and concatenations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from topiarist.graph import Axes, AxisInfo
from topiarist.plan import Units
from topiarist.structure.base import require_some


@dataclass(frozen=True)
class Channel:
    """One unit an index of an axis that is not a head axis; at least one index of each axis stays."""

    is_physical: ClassVar[bool] = True

    def units(self, axes: Axes, keep: Sequence[str] = ()) -> list[Units]:
        """One set of units per free axis.

        Raises:
            InputError: a pattern of ``keep`` matches no module, or no axis is left.
        """
        return require_some(units_of(axes, keep, heads=False), "channel", axes)


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
    return Units(axis.name, axis.size, axis.members, axis.layer, axis.kind, minimum=1)


def _stepped(axis: AxisInfo, together: Sequence[AxisInfo]) -> Units:
    num = min(a.size // size for a, (_, size) in zip(together, axis.step, strict=True))
    return Units(axis.name, num, (), axis.layer, axis.kind, minimum=1, step=axis.step)
