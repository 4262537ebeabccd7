"""The units of a model in training: their norms, and coefficients of theirs put on their entries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from topiarist import structure as structures
from topiarist.asked import patterns
from topiarist.graph import Axes, trace
from topiarist.plan import Member, Units
from topiarist.structure import Structure
from topiarist.structure.channel import axis_units


def units_in(
    model: nn.Module, example_inputs: Any, structure: str | Structure = "channel", keep: Sequence[str] = ()
) -> tuple[Axes, tuple[Units, ...]]:
    """The axes of a model and the units of a structure, one set an axis where several axes shrink together.

    Raises:
        InputError: the structure is not known, or nothing of it may go.
        TraceError: the model does not run on ``example_inputs``.
    """
    model = getattr(model, "_orig_mod", model)
    axes = trace(model, example_inputs)
    found: dict[str, Units] = {}
    for units in structures.resolve(structure, None, model).units(axes, patterns(keep)):
        for each in (axis_units(axes[name]) for name, _ in units.step) if units.step else (units,):
            found.setdefault(each.name, each)
    return axes, tuple(found.values())


def parameters_with(units: Units, parameters: Mapping[str, Tensor]) -> Iterator[tuple[Member, Tensor]]:
    """The members of units that are floating-point parameters, each with its tensor."""
    for member in units.members:
        parameter = parameters.get(member.tensor)
        if parameter is not None and parameter.is_floating_point():
            yield member, parameter


def squared_norms(units: Units, parameters: Mapping[str, Tensor]) -> Tensor:
    """Σ_m Σ_i (w^m_ji)² of every unit j over its members m: floats of shape ``(num units,)``; autograd goes through.

    Example:
        >>> units = Units("fc", 2, (Member("w", 0, torch.tensor([0, 1])), Member("v", 1, torch.tensor([1, -1]))))
        >>> squared_norms(units, {"w": torch.tensor([[1.0], [2.0]]), "v": torch.tensor([[3.0, 9.0]])})
        tensor([ 1., 13.])
    """
    total: Tensor | None = None
    for member, parameter in parameters_with(units, parameters):
        part = _by_unit(parameter.square(), member, units.num)
        total = part if total is None else total.to(part.device) + part
    return torch.zeros(units.num) if total is None else total


def spread(coefficients: Tensor, member: Member, parameter: Tensor, elsewhere: float) -> Tensor:
    """The coefficients ``(num units,)`` of units at the entries of a member, ``elsewhere`` where no unit lives.

    The result broadcasts against the parameter; autograd goes through to the coefficients.
    """
    coefficients = coefficients.to(parameter)
    if member.unit is None:
        return coefficients.view(parameter.shape)
    unit = member.unit.to(parameter.device)
    if member.dim is None:
        return coefficients[unit].view(parameter.shape)
    values = torch.where(unit >= 0, coefficients[unit.clamp(min=0)], elsewhere)
    return values.view([-1 if dim == member.dim else 1 for dim in range(parameter.ndim)])


def _by_unit(entries: Tensor, member: Member, num: int) -> Tensor:
    """The sum of a tensor's entries by unit: ``(num units,)``."""
    if member.unit is None:
        return entries.reshape(num)
    others = [] if member.dim is None else [dim for dim in range(entries.ndim) if dim != member.dim]
    along = entries.sum(others) if others else entries.flatten()
    unit = member.unit.to(entries.device)
    return torch.zeros(num + 1, dtype=along.dtype, device=along.device).index_add(
        0, torch.where(unit >= 0, unit, num), along
    )[:num]
