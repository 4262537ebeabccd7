"""What a structure is: from the axes of a model to the sets of units that may go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from torch import Tensor, nn

from topiarist.errors import InputError
from topiarist.graph import Axes
from topiarist.graph.copies import model_tensors
from topiarist.graph.reasons import FIXED
from topiarist.plan import Units
from topiarist.saliency.base import Slices
from topiarist.stats import Statistics
from topiarist.stats.cut import rows_of


class Structure(Protocol):
    """What one unit is.

    A structure may also have: ``word``, what recipes and plans call it; ``names_amount = True`` where the structure
    itself says how much goes when no budget does; and ``protected(axes, units, scores, gone)``, which says by bool
    tensors ``(num units,)`` per set which units may not go, given scores and what is gone; ``pattern``, the ``"n:m"``
    that criteria which choose within groups themselves are told (`topiarist.saliency.told`). A physical structure whose
    units are no indices of axes has ``remaining(axes, units, removed)``, the `Axes` of what is left to pay for, and
    ``rewriting(axes, units, removed, tensors)``, the fields of the `Plan` that say what goes; with ``settled(axes,
    units, removed)`` it takes back what does not pay.
    """

    @property
    def is_physical(self) -> bool:
        """Whether removing units makes tensors smaller (`topiarist.shrink`)."""
        ...

    def units(self, axes: Axes, keep: Sequence[str]) -> list[Units]:
        """The sets of units of a traced model; what the modules matching ``keep`` return stays whole."""
        ...


def slices(units: Units, tensors: Mapping[str, Tensor], statistics: Statistics | None = None) -> Slices:
    """Cut the parameters of one set of units, and what was collected about them, into units."""
    there = replace(units, members=tuple(m for m in units.members if m.tensor in tensors))  # one for each weight
    return Slices(there, rows_of(units, tensors), {need: s.of(units) for need, s in (statistics or {}).items()})


def own_weight(units: Units, tensors: Mapping[str, Tensor]) -> Tensor:
    """The weight that the units are named after, for rules that go by its spread or shape."""
    name = units.name.partition(":")[0]
    if name not in tensors:
        raise InputError(f"{units.name!r} has no weight of its own to go by; try structure='weight'")
    return tensors[name].detach()


def require_some(units: list[Units], what: str, axes: Axes) -> list[Units]:
    """Refuse a model in which nothing can go.

    Raises:
        InputError: there are no units.
    """
    if not units:
        pinned = "; ".join(f"{a.name}: {a.pins[0]}" for a in axes.axes if a.pins and a.pins[0].kind not in FIXED)
        why = pinned or "all that it has is input, output or kept, or of another kind"
        raise InputError(f"the model has no {what} that may go ({why}); try axes.summary()")
    return units


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    """Every parameter by name, tied ones under each of their names."""
    return {name: tensor for name, tensor, kind in model_tensors(model) if kind == "parameter"}
