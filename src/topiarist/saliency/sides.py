"""What makes a unit and what consumes it, told apart among its weights."""

from __future__ import annotations

import torch
from torch import Tensor

from topiarist.errors import InputError
from topiarist.saliency.base import Slices


def making(slices: Slices, *, biases: bool = False) -> Tensor:
    """The weights that make each unit, side by side: float64 of shape (num units, elements).

    These are the members whose products have the units as outputs (`topiarist.plan.Member.side`); with ``biases`` also
    those that take part in no product. Where there are none of them, as for rows of a table, it is all that does not
    consume the units, and where that is nothing, everything.

    Raises:
        InputError: the units are single weights, which nothing makes.
    """
    sided = _sided(slices)
    outer = [w for w, side in sided if side == "out" or (biases and side == "")]
    return _together(outer or [w for w, side in sided if side != "in"] or [w for w, _ in sided], slices)


def consuming(slices: Slices) -> Tensor:
    """The weights that each unit's activation is multiplied by, side by side: float64 (num units, elements)."""
    return _together([w for w, side in _sided(slices) if side == "in"], slices)


def _sided(slices: Slices) -> list[tuple[Tensor, str]]:
    members = slices.units.members
    if any(member.dim is None for member in members):
        raise InputError(
            f"the units of {slices.units.name!r} are entries of a weight: nothing makes or consumes them; "
            f"try structure='channel' or saliency='l2'"
        )
    sides = [member.side for member in members] or [""] * len(slices.weights)  # without members none is known
    return list(zip(slices.weights, sides, strict=True))


def _together(weights: list[Tensor], slices: Slices) -> Tensor:
    rows = [w.detach().double() for w in weights]
    device = slices.weights[0].device if slices.weights else torch.device("cpu")
    return torch.cat(rows, dim=1) if rows else torch.zeros(slices.units.num, 0, dtype=torch.float64, device=device)
