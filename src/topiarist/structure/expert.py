"""Structure ``expert``: the experts of a mixture (Shazeer et al. 2017; Lu et al. 2024, arXiv:2402.14800).

An expert axis is one of whose indices a top-k or an argmax chooses some, and which looks up weights: the router's
outputs and the stacks of the experts' weights share it. Or the entries of a module list deal with what was chosen, each
with an index of its own (`topiarist.graph.picks`): they go as a whole, with their rows of the router.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from topiarist.graph import Axes, AxisInfo
from topiarist.plan import Units
from topiarist.structure.base import require_some
from topiarist.structure.channel import axis_units


@dataclass(frozen=True)
class Expert:
    """One unit an expert; of each mixture as many stay as are chosen at a time.

    A cut is inexact: the softmax and the choice run over fewer. What is left is the original function with the router's
    outputs for the experts that go at −∞, where only those of the chosen ones count. This is what `verify` proves
    (`topiarist.graph.unchosen`).
    """

    is_physical: ClassVar[bool] = True

    def units(self, axes: Axes, keep: Sequence[str] = ()) -> list[Units]:
        """One set of units per free axis of experts.

        Raises:
            InputError: a pattern of ``keep`` matches no module, or no axis is left.
        """
        kept = axes.kept_by(keep)
        free = [a for a in axes.axes if a.is_expert and not a.pins and a.leaf not in kept and not a.step]
        return require_some([_units(axes, axis) for axis in free if axis.size > axis.minimum], "expert", axes)


def _units(axes: Axes, axis: AxisInfo) -> Units:
    """The indices of an axis of experts, with the modules that belong to them."""
    units = axis_units(axis)
    return replace(units, members=(*units.members, *axes.entries(axis.name)))
