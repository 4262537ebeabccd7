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
    """What one unit is.

    A structure may also have: ``word``, what recipes and plans call it; ``names_amount = True`` where the structure
    itself says how much goes when no budget does; and ``protected(axes, units, scores, gone)``, which says by bool
    tensors ``(num units,)`` per set which units may not go, given scores and what is gone. A physical structure whose
    units are no indices of axes has ``remaining(axes, units, removed)``, the `Axes` of what is left to pay for, and
    ``rewriting(axes, units, removed, tensors)``, the fields of the `Plan` that say what goes.
    """

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
    if members and all(m.unit is not None and m.unit.dim() == 0 for m in members):
        return _slices_of_wholes(units, members, tensors, gradients)
    weights = tuple(_by_unit(tensors[m.tensor], m, units.num) for m in members)
    if gradients is None:
        return Slices(units, weights)
    return Slices(units, weights, tuple(_by_unit(gradients[m.tensor], m, units.num) for m in members))


def _slices_of_wholes(
    units: Units, members: Sequence[Member], tensors: Mapping[str, Tensor], gradients: Mapping[str, Tensor] | None
) -> Slices:
    """Whole tensors by unit: the first of every unit together, then the second; rows are filled up with zeros."""
    by_unit: dict[int, list[str]] = {i: [] for i in range(units.num)}
    for member in members:
        by_unit[int(member.unit if member.unit is not None else 0)].append(member.tensor)
    places = max(map(len, by_unit.values()))

    def stacked(source: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        some = source[members[0].tensor]
        rows = [
            [source[names[i]].detach().flatten() if i < len(names) else some.new_zeros(0) for names in by_unit.values()]
            for i in range(places)
        ]
        return tuple(nn.utils.rnn.pad_sequence(each, batch_first=True) for each in rows)

    return Slices(units, stacked(tensors), () if gradients is None else stacked(gradients))


def _by_unit(tensor: Tensor, member: Member, num: int) -> Tensor:
    """The entries of one tensor, one row a unit: ``(num units, elements)``."""
    tensor = tensor.detach()
    if member.unit is None:
        return tensor.reshape(num, 1)
    if member.dim is None:
        return _entries_by_unit(tensor, member.unit, num)
    positions = torch.argsort(member.unit, stable=True)[int((member.unit < 0).sum()) :]
    first = int(positions[0]) if len(positions) else 0
    if torch.equal(positions, torch.arange(first, first + len(positions))):  # in a row, as mostly: no copy of its own
        part = tensor.narrow(member.dim, first, len(positions))
    else:
        part = tensor.index_select(member.dim, positions.to(tensor.device))
    return torch.unflatten(part, member.dim, (num, -1)).movedim(member.dim, 0).reshape(num, -1)


def _entries_by_unit(tensor: Tensor, unit: Tensor, num: int) -> Tensor:
    """The same where units are sets of entries; units with fewer entries than others are filled up with zeros."""
    order = torch.argsort(unit, stable=True)[int((unit < 0).sum()) :]
    sorted_unit = unit[order]
    counts = torch.bincount(sorted_unit, minlength=num)
    values = tensor.reshape(-1)[order.to(tensor.device)]
    most = int(counts.max()) if len(order) else 0
    if bool((counts == most).all()):
        return values.view(num, most)
    place = torch.arange(len(order)) - (counts.cumsum(0) - counts)[sorted_unit]
    rows = values.new_zeros(num, most)
    rows[sorted_unit.to(rows.device), place.to(rows.device)] = values
    return rows


def own_weight(units: Units, tensors: Mapping[str, Tensor]) -> Tensor:
    """The flattened weight that the units are named after, for thresholds in units of its spread."""
    name = units.name.partition(":")[0]
    if name not in tensors:
        raise InputError(f"{units.name!r} has no weight of its own to take a threshold of; try structure='weight'")
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
