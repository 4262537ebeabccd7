"""Structure ``head``: every attention head is a unit (Michel et al. 2019, Voita et al. 2019).

A head axis is one that attention carries as a batch: both factors of its products are activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from topiarist.graph import Axes
from topiarist.plan import Units
from topiarist.structure.base import require_some
from topiarist.structure.channel import units_of


@dataclass(frozen=True)
class Head:
    """One unit an attention head; at least one head of each attention stays."""

    is_physical: ClassVar[bool] = True

    def units(self, axes: Axes, keep: Sequence[str] = ()) -> list[Units]:
        """One set of units per free head axis.

        Raises:
            InputError: a pattern of ``keep`` matches no module, or no axis is left.
        """
        return require_some(units_of(axes, keep, heads=True), "attention head", axes)
