"""Structures ``width`` and ``inner``: attention heads and channels in one ranking, with or without the stream.

Structured pruning of language models takes heads and neurons of the MLPs, which compete with one another (FLAP, An et
al. 2024), and the channels of the residual stream as well (Minitron, Muralidharan et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from topiarist.graph import Axes
from topiarist.graph.axis import Axis
from topiarist.plan import Units
from topiarist.structure.base import require_some
from topiarist.structure.channel import units_of


@dataclass(frozen=True)
class Width:
    """One unit a head, or an index of a channel axis; one of each axis stays. Features inside of heads stay whole.

    Without the ``stream`` (``"inner"``) only axes of which removing an index equals zeroing it: those that a norm runs
    over, as over the stream of a transformer, stay whole, so that the mean of what goes can move into a bias
    (`topiarist.recover.Compensate`). In a convolutional network with batch norms both are all channels.
    """

    stream: bool = True
    is_physical: ClassVar[bool] = True

    @property
    def word(self) -> str:
        """What recipes call it."""
        return "width" if self.stream else "inner"

    def units(self, axes: Axes, keep: Sequence[str] = ()) -> list[Units]:
        """One set of units per axis, in the order of the model.

        Raises:
            InputError: a pattern of ``keep`` matches no module, or nothing is left.
        """
        inside = _inside_heads(axes)
        heads = units_of(axes, keep, heads=True)
        known = {units.name for units in heads}
        channels = [u for u in units_of(axes, keep, heads=False) if u.name not in known]
        channels = [u for u in channels if not inside & {axes[name].leaf for name in _axes_of(u)}]
        found = [u for u in (*heads, *channels) if u.num > u.minimum and (self.stream or not axes.why_inexact(u.name))]
        order = {axis.name: place for place, axis in enumerate(axes.axes)}
        found.sort(key=lambda units: order[units.name])
        return require_some(found, "head or channel", axes)


def _axes_of(units: Units) -> tuple[str, ...]:
    return tuple(name for name, _ in units.step) or (units.name,)


def _inside_heads(axes: Axes) -> set[Axis]:
    """The leaves that share a dimension of a tensor with the heads of an attention, and are none."""
    heads = {axis.leaf for axis in axes.axes if axis.is_head}
    held = [{*axes.graph.leaves(own)} for info in axes.tensors.values() for own in info.axes]
    return {leaf for leaves in held if leaves & heads for leaf in leaves} - heads
