"""Structure ``weight``: every single entry of a weight is a unit (LeCun et al. 1990, Han et al. 2015).

Prunable are the parameters that multiply activations, in linear maps and convolutions of whatever class; biases and
norm parameters are not. The classifier is prunable as well: keep it with ``keep=["name"]``.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from topiarist.errors import InputError, nearest
from topiarist.graph import Axes
from topiarist.plan import Member, Units
from topiarist.structure.base import require_some


@dataclass(frozen=True)
class Weight:
    """One unit an entry. Removal zeroes: the tensors keep their shapes."""

    is_physical: ClassVar[bool] = False

    def units(self, axes: Axes, keep: Sequence[str] = ()) -> list[Units]:
        """One set of units per weight.

        Raises:
            InputError: a pattern of ``keep`` matches no module, or no weight is left.
        """
        for pattern in keep:
            if not fnmatch.filter(axes.modules, pattern):
                raise InputError(f"keep={pattern!r} matches no module ({nearest(pattern, axes.modules)})")
        units = []
        for name in axes.weights():
            layer = name.rpartition(".")[0]
            if not any(fnmatch.fnmatch(layer, pattern) for pattern in keep):
                num = math.prod(axes.graph.measure(axis, {}) for axis in axes.tensors[name].axes)
                units.append(Units(name, num, (Member(name),), layer, axes.modules.get(layer, "")))
        return require_some(units, "weight", axes)
