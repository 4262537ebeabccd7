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
    """The units of every free axis that is (or is not) a head axis."""
    kept = axes.kept_by(keep)
    return [_units(axis) for axis in axes.axes if not axis.pins and axis.is_head == heads and axis.leaf not in kept]


def _units(axis: AxisInfo) -> Units:
    return Units(axis.name, axis.size, axis.members, axis.layer, axis.kind, minimum=1)
