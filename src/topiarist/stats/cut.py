"""From tensors of the shape of parameters to one row a unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from topiarist.plan import Member, Units


def by_unit(tensor: Tensor, member: Member, num: int, known: dict[int, _Place] | None = None) -> Tensor:
    """The entries of one tensor, one row a unit: ``(num units, elements)``.

    ``known`` holds what is worked out of members, by the id of their units, for other tensors along the same axis.

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
    place = (known or {}).get(id(member.unit)) or _place_of(member.unit, num)
    if known is not None:
        known[id(member.unit)] = place
    if place.positions is not None:
        part = tensor.index_select(member.dim, place.positions.to(tensor.device))
    else:
        whole = tensor.shape[member.dim] == place.num
        part = tensor if whole else tensor.narrow(member.dim, place.first, place.num)
    if place.num != num:
        part = torch.unflatten(part, member.dim, (num, -1))
    return part.movedim(member.dim, 0).reshape(num, -1)


class _Place(NamedTuple):
    """Where units lie along a dimension, those of the first one first: ``num`` positions from ``first`` on, in a row
    where there are no ``positions``."""

    first: int
    num: int
    positions: Tensor | None = None


def _place_of(unit: Tensor, num: int) -> _Place:
    if unit.numel() == num and torch.equal(unit, torch.arange(num)):  # one a position, as mostly
        return _Place(0, num)
    positions = torch.argsort(unit, stable=True)[int((unit < 0).sum()) :]
    first, size = int(positions[0]) if positions.numel() else 0, positions.numel()
    in_a_row = torch.equal(positions, torch.arange(first, first + size))  # as mostly: no copy of its own
    return _Place(first, size, None if in_a_row else positions)


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

    Where whole tensors belong to units, they come last: the first of every unit make one tensor of rows, and so on;
    rows are filled up with zeros. ``weights`` are the parameters where ``tensors`` are something else, as `Member.view`
    asks.
    """
    members = [m for m in units.members if m.tensor in tensors]
    wholes = [m for m in members if m.unit is not None and m.unit.dim() == 0]
    weights = tensors if weights is None else weights
    known: dict[int, _Place] = {}
    rows = tuple(
        m.view(weights[m.tensor], tensors[m.tensor]) if m.view else by_unit(tensors[m.tensor], m, units.num, known)
        for m in members
        if m not in wholes
    )
    return (*rows, *_rows_of_wholes(wholes, units.num, tensors)) if wholes else rows


def _rows_of_wholes(members: Sequence[Member], num: int, tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    held: list[list[Tensor]] = [[] for _ in range(num)]
    for member in members:
        held[int(member.unit if member.unit is not None else 0)].append(tensors[member.tensor].detach().flatten())
    nothing = next(own[0] for own in held if own).new_zeros(0)
    return tuple(
        nn.utils.rnn.pad_sequence([own[i] if i < len(own) else nothing for own in held], batch_first=True)
        for i in range(max(map(len, held)))
    )
