"""Tolerance: prune each layer as far as the accuracy allows when that layer alone is pruned."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from topiarist.allocation.base import Candidates, check_level, share
from topiarist.allocation.sensitivity import SensitivityTable
from topiarist.errors import InputError, nearest


@dataclass(frozen=True)
class Tolerance:
    """Remove of layer l the largest ratio r_l up to which pruning l alone lowers the accuracy by at most ``drop``.

    The amounts come from the table: no budget is taken. A ratio counts only where every smaller one in the table is
    tolerated too, so that an accuracy that recovers by chance is no permission. ``drop`` is a fraction of all examples
    (0.01: one in a hundred). How far all layers together may go the table does not know: look at the accuracy.

    Raises:
        InputError: ``drop`` is negative or no number; when called with units that the table has no row for.

    Example:
        >>> import torch
        >>> from topiarist.allocation.sensitivity import Cell
        >>> from topiarist.plan import Units
        >>> cells = (Cell("a", 0.5, 0.1, 0.895), Cell("a", 1.0, 3.0, 0.1), Cell("b", 0.5, 0.2, 0.8))
        >>> table = SensitivityTable(0.0, 0.9, cells)
        >>> candidates = Candidates((Units("a", 6, ()), Units("b", 6, ())), {k: torch.arange(6.0) for k in "ab"})
        >>> {k: int(v.sum()) for k, v in Tolerance(table)(candidates, 1.0).items()}
        {'a': 3, 'b': 0}
    """

    table: SensitivityTable
    drop: float = 0.01
    needs_budget: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.drop < math.inf:
            raise InputError(f"the accuracy may drop by 0 or more, got {self.drop!r}")

    def __call__(self, candidates: Candidates, level: float) -> dict[str, Tensor]:
        check_level(level)
        return {u.name: candidates.lowest(u, share(level * self.ratio(u.name), u.num)) for u in candidates.units}

    def ratio(self, layer: str) -> float:
        """The ratio of one layer; 0 where not even the first of the table is tolerated."""
        if layer not in self.table.layers:
            raise InputError(f"the sensitivity table has no row for {layer!r} ({nearest(layer, self.table.layers)})")
        found = 0.0
        for cell in sorted((c for c in self.table.cells if c.layer == layer), key=lambda c: c.ratio):
            if self.table.accuracy - cell.accuracy > self.drop + 1e-12:  # accuracies are quotients of counts
                break
            found = cell.ratio
        return found
