"""What a trace knows of a tensor, and what it counts of an operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from topiarist.graph.axis import Axis
from topiarist.graph.matrix import Matrix


class Tracked(NamedTuple):
    """What is known of a tensor: its axes; per dimension, whether zeroing an index upstream zeroes it here too; the
    model tensor it is a reshaped view of, if any; whether it is one value everywhere; and the axes that are pinned as
    soon as its values are used, with the reason, as those that an argmax runs over."""

    axes: tuple[Axis, ...]
    zero: tuple[bool, ...]
    source: str | None = None
    is_uniform: bool = False
    pins: tuple[tuple[Axis, str], ...] = ()
    ranges: Axis | None = None  # the axis of which the values are indices, as a top-k's are
    taken: tuple[Axis, int] | None = None  # the axis of a model's tensor of which this is a single index, and which


@dataclass(frozen=True, eq=False)
class Cost:
    """Multiply–accumulates: the product of the sizes of ``axes``; ``tensor`` is the weight that takes part, if any,
    ``matrix`` says which of its dimensions are which, and ``modules`` which modules ran, the outermost first. Where
    each index of an axis has its share of what is counted, ``among`` names it and how many shares go round; where it is
    counted for a single index of an axis, ``each`` names that."""

    axes: tuple[Axis, ...]
    tensor: str | None
    matrix: Matrix | None = None
    modules: tuple[str, ...] = ()
    among: tuple[Axis, int] | None = None
    each: Axis | None = None
