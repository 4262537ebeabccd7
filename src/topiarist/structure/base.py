"""What a structure is: from the axes of a model to the sets of units that may go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from topiarist.errors import InputError
from topiarist.graph import Axes
from topiarist.graph.reasons import FIXED
from topiarist.plan import Member, Units
from topiarist.saliency.base import Slices


class Structure(Protocol):
    """What one unit is."""

    @property
    def is_physical(self) -> bool:
        """Whether removing units makes tensors smaller (`topiarist.shrink`)."""
        ...

    def units(self, axes: Axes, keep: Sequence[str]) -> list[Units]:
        """The sets of units of a traced model; what the modules matching ``keep`` return stays whole."""
        ...


def slices(units: Units, tensors: Mapping[str, Tensor], gradients: Mapping[str, Tensor] | None = None) -> Slices:
    """Cut the parameters of one set of units into units: each member as ``(num units, elements)``."""
    members = [m for m in units.members if m.tensor in tensors]
    weights = tuple(_by_unit(tensors[m.tensor], m, units.num) for m in members)
    if gradients is None:
        return Slices(units, weights)
    return Slices(units, weights, tuple(_by_unit(gradients[m.tensor], m, units.num) for m in members))


def _by_unit(tensor: Tensor, member: Member, num: int) -> Tensor:
    """The entries of one tensor, one row a unit: ``(num units, elements)``."""
    tensor = tensor.detach()
    if member.dim is None or member.unit is None:
        return tensor.reshape(num, 1)
    if len(member.unit) == num and torch.equal(member.unit, torch.arange(num)):  # one a position, as mostly
        return tensor.movedim(member.dim, 0).reshape(num, -1)
    positions = torch.argsort(member.unit, stable=True)[int((member.unit < 0).sum()) :]
    first = int(positions[0]) if len(positions) else 0
    if torch.equal(positions, torch.arange(first, first + len(positions))):  # in a row, as mostly: no copy of its own
        part = tensor.narrow(member.dim, first, len(positions))
    else:
        part = tensor.index_select(member.dim, positions.to(tensor.device))
    return torch.unflatten(part, member.dim, (num, -1)).movedim(member.dim, 0).reshape(num, -1)


def own_weight(units: Units, tensors: Mapping[str, Tensor]) -> Tensor:
    """The flattened weight that the units are named after, for thresholds in units of its spread."""
    name = units.name.partition(":")[0]
    return tensors[name].detach().flatten()


def require_some(units: list[Units], what: str, axes: Axes) -> list[Units]:
    """Refuse a model in which nothing can go.

    Raises:
        InputError: there are no units.
    """
    if not units:
        pinned = "; ".join(f"{a.name}: {a.pins[0]}" for a in axes.axes if a.pins and a.pins[0].kind not in FIXED)
        raise InputError(
            f"the model has no {what} that may go ({pinned or 'no parameters take part'}); try axes.summary()"
        )
    return units


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter by name, tied ones under each of their names."""
    return dict(model.named_parameters(remove_duplicate=False))
