"""Units that take several indices at once: eight channels; heads of every block and the stream they are cut from.

Which index of one axis goes with which of another is nobody's choice but the score's: the lowest of each go together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from topiarist.graph import Axes
from topiarist.plan import Units
from topiarist.structure.channel import axis_units

Score = Callable[[Units], Tensor]


def ranked(units: Units, axes: Axes, score: Score, gone: Mapping[str, Tensor]) -> tuple[Units, Tensor, Tensor]:
    """Assign the indices of every axis to units, lowest scores first, those gone before all others.

    Returns:
        The units with their assignment; their scores, the sum over axes of the scores of their indices over the
        axis' mean: (num units,), never less than that of the unit before, since they go in this order; and which of
        them are gone: bool (num units,).
    """
    total = torch.zeros(units.num, dtype=torch.float64)
    assigned: list[tuple[str, Tensor]] = []
    num_gone = 0
    for (name, size), first in zip(units.step, units.first, strict=True):
        scores = score(axis_units(axes[name])).double().cpu()
        scores = scores / (scores.abs().mean() or 1.0)
        lost = gone.get(name, torch.zeros(len(scores), dtype=torch.bool))
        order = torch.argsort(scores.masked_fill(lost, -torch.inf), stable=True)
        assigned.append((name, _in_order(order, units.num, size, first)))
        beyond = max(0, int(lost.sum()) - first)
        num_gone = -(-beyond // size) + 1 if bool(lost.any()) else 0
        total.index_add_(0, assigned[-1][1], scores)
    total[num_gone:] = total[num_gone:].cummax(0).values
    return replace(units, assigned=tuple(assigned)), total, torch.arange(units.num) < num_gone


def by_axis(all_units: Sequence[Units], removed: Mapping[str, Tensor], axes: Axes) -> dict[str, Tensor]:
    """Which indices of which axis go: bool of shape ``(size,)``; units not ranked yet take indices as they come.

    Names that are no units' are axes already.
    """
    steps = {units.name: units for units in all_units if units.step}
    found = {name: gone.cpu() for name, gone in removed.items() if name not in steps}
    for units in steps.values():
        gone = removed[units.name].cpu()
        for (name, size), first in zip(units.step, units.first, strict=True):
            unit = dict(units.assigned).get(name)
            unit = _in_order(torch.arange(axes[name].size), units.num, size, first) if unit is None else unit
            found[name] = gone[unit]
    return found


def _in_order(order: Tensor, num: int, size: int, first: int) -> Tensor:
    """Units in the order given: ``first`` indices, then ``size`` each, and for the last what is left."""
    place = torch.arange(len(order))
    unit = torch.empty(len(order), dtype=torch.long)
    unit[order] = torch.where(place < first, 0, 1 + (place - first) // size).clamp(max=num - 1)
    return unit
