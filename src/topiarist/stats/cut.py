"""From tensors of the shape of parameters to one row a unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from topiarist.plan import Member, Units


def by_unit(tensor: Tensor, member: Member, num: int) -> Tensor:
    """The entries of one tensor, one row a unit: ``(num units, elements)``.

    Example:
        >>> by_unit(torch.tensor([[1, 2], [3, 4]]), Member("w", 1, torch.arange(2)), 2)
        tensor([[1, 3],
                [2, 4]])
    """
    tensor = tensor.detach()
    if member.unit is None:
        return tensor.reshape(num, 1)
    if member.dim is None:
        return _entries_by_unit(tensor, member.unit, num)
    if len(member.unit) == num and torch.equal(member.unit, torch.arange(num)):  # one a position, as mostly
        return tensor.movedim(member.dim, 0).reshape(num, -1)
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


def rows_of(
    units: Units, tensors: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None = None
) -> tuple[Tensor, ...]:
    """What the units have in each of ``tensors``, one of shape (num units, elements) per member that is there.

    Where whole tensors belong to units, the first of every unit make the first tensor of rows, and so on; rows are
    filled up with zeros. ``weights`` are the parameters where ``tensors`` are something else, as `Member.view` asks.
    """
    members = [m for m in units.members if m.tensor in tensors]
    if members and all(m.unit is not None and m.unit.dim() == 0 for m in members):
        return _rows_of_wholes(members, units.num, tensors)
    weights = tensors if weights is None else weights
    return tuple(
        m.view(weights[m.tensor], tensors[m.tensor]) if m.view else by_unit(tensors[m.tensor], m, units.num)
        for m in members
    )


def _rows_of_wholes(members: Sequence[Member], num: int, tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    held: list[list[Tensor]] = [[] for _ in range(num)]
    for member in members:
        held[int(member.unit if member.unit is not None else 0)].append(tensors[member.tensor].detach().flatten())
    nothing = next(own[0] for own in held if own).new_zeros(0)
    return tuple(
        nn.utils.rnn.pad_sequence([own[i] if i < len(own) else nothing for own in held], batch_first=True)
        for i in range(max(map(len, held)))
    )
