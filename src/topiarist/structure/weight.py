"""Structure ``weight``: every single entry of a weight is a unit (LeCun et al. 1990, Han et al. 2015).

Prunable are the parameters that multiply activations, in linear maps and convolutions of whatever class; biases and
norm parameters are not. The classifier is prunable as well: keep it with ``keep=["name"]``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from topiarist.graph import Axes
from topiarist.plan import Member, Units
from topiarist.structure.base import require_some
from topiarist.structure.entries import weights_to_cut


@dataclass(frozen=True)
class Weight:
    """One unit an entry. Removal zeroes: the tensors keep their shapes."""

    is_physical: ClassVar[bool] = False

    def units(self, axes: Axes, keep: Sequence[str] = ()) -> list[Units]:
        """One set of units per weight.

        Raises:
            InputError: a pattern of ``keep`` matches no module, or no weight is left.
        """
        return require_some([units_of_entries(axes, name) for name in weights_to_cut(axes, keep)], "weight", axes)


def units_of_entries(axes: Axes, name: str) -> Units:
    """The entries of one weight."""
    layer = name.rpartition(".")[0]
    return Units(name, math.prod(axes.shape(name)), (Member(name),), layer, axes.modules.get(layer, ""))
