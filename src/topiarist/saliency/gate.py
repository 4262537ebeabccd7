"""Gates: scores that someone else has learned, one a unit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from topiarist.errors import InputError, nearest
from topiarist.saliency.base import Slices


@dataclass(frozen=True, eq=False)
class Gate:
    """The magnitude of a unit's gate: s_j = |g_j|, with ``values`` mapping each set of units to its gates.

    Gates multiply what units give, and training with a penalty on them closes those that are not needed: learned
    masks (Liu et al. 2017, Louizos et al. 2018, Xiao et al. 2019). Names are those of `topiarist.plan.Units`: the
    weight, or the axis (``"conv1.weight:0"``).

    Raises:
        InputError: a set of units has no gates, or not one a unit.

    Example:
        >>> import torch
        >>> from topiarist.plan import Units
        >>> Gate({"fc.weight:0": torch.tensor([0.9, -0.1])})(Slices(Units("fc.weight:0", 2, ()), ()))
        tensor([0.9000, 0.1000])
    """

    values: Mapping[str, Tensor] = field(repr=False)
    needs: ClassVar[frozenset[str]] = frozenset()
    is_comparable: ClassVar[bool] = True

    def __call__(self, slices: Slices) -> Tensor:
        units = slices.units
        if units.name not in self.values:
            raise InputError(f"there are no gates for {units.name!r} ({nearest(units.name, self.values)})")
        gates = self.values[units.name].detach()
        if gates.numel() != units.num:
            raise InputError(f"{units.name!r} has {units.num} units, got {gates.numel()} gates")
        return gates.abs().flatten()

    def __repr__(self) -> str:
        return f"Gate({len(self.values)} sets of units, digest {digest(self.values)})"


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Twelve hexadecimal digits that tell tensors apart, so that a run goes on only with the same ones.

    Example:
        >>> import torch
        >>> digest({}) == digest({"a": torch.zeros(1)})
        False
    """
    found = hashlib.sha256()
    for name, tensor in tensors.items():
        found.update(f"{name}{tuple(tensor.shape)}".encode())
        found.update(tensor.detach().double().cpu().numpy().tobytes())
    return found.hexdigest()[:12]
