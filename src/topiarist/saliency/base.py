"""What every criterion sees (`Slices`), what it is (`Saliency`), and the one door through which scores come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from topiarist.errors import InputError
from topiarist.plan import Units
from topiarist.saliency.finite import check_finite


@dataclass(frozen=True, eq=False)
class Slices:
    """The tensors of one set of units, cut into units: row j of each tensor is what unit j has there.

    ``weights`` holds one tensor of shape ``(num units, elements)`` per member that is a parameter; ``gradients`` has
    the same shapes, and is there for criteria that need it.

    Raises:
        InputError: a tensor does not have one row per unit, or gradients do not fit the weights.
    """

    units: Units
    weights: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        for tensor in (*self.weights, *self.gradients):
            if tensor.ndim != 2 or len(tensor) != self.units.num:
                raise InputError(
                    f"slices of {self.units.name!r} have shape (num units={self.units.num}, elements), "
                    f"got {tuple(tensor.shape)}"
                )
        if self.gradients and [g.shape for g in self.gradients] != [w.shape for w in self.weights]:
            raise InputError(f"gradients of {self.units.name!r} do not have the shapes of the weights")


class Saliency(Protocol):
    """The score of units: any callable of this shape will do.

    It returns floats of shape ``(num units,)``; low scores go first. It sees no module and changes none of its
    inputs. What it needs beyond weights it names in ``needs``, a frozenset of names of fields of `Slices`
    (``"gradients"``); a callable without the attribute needs nothing.
    """

    def __call__(self, slices: Slices) -> Tensor:
        """Floats of shape ``(num units,)``."""
        ...


def needs(criterion: Saliency) -> frozenset[str]:
    """What the criterion needs beyond weights."""
    return frozenset(getattr(criterion, "needs", frozenset()))


def score(criterion: Saliency, slices: Slices, *, checked: bool = False) -> Tensor:
    """The criterion's scores of these units, checked on the way in and out: floats of shape ``(num units,)``.

    ``checked`` says that weights and gradients are known to be finite.

    Raises:
        InputError: weights or gradients are NaN or infinite, what the criterion needs is not there, or it returns
            anything but finite floats, one per unit.

    Example:
        >>> slices = Slices(Units("fc", 2, ()), (torch.tensor([[1.0, -2.0], [0.5, 0.0]]),))
        >>> score(lambda slices: slices.weights[0].abs().amax(1), slices)
        tensor([2.0000, 0.5000])
    """
    units = slices.units
    for what, tensors in () if checked else (("weights", slices.weights), ("gradients", slices.gradients)):
        for place, tensor in enumerate(tensors):
            check_finite({_tensor_name(units, place, len(tensors)): tensor}, what)
    missing = [need for need in needs(criterion) if not getattr(slices, need, None)]
    if missing and slices.weights:
        raise InputError(f"{criterion} needs {', '.join(missing)} of {units.name!r}; pass data and loss")
    with torch.no_grad():
        scores = criterion(slices)
    if not isinstance(scores, Tensor) or scores.shape != (units.num,) or not scores.is_floating_point():
        found = f"{scores.dtype} of shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else repr(scores)
        raise InputError(f"{criterion} must return floats of shape ({units.num},) for {units.name!r}, got {found}")
    check_finite({units.name: scores}, "scores")
    return scores.detach()


def _tensor_name(units: Units, place: int, num: int) -> str:
    return units.members[place].tensor if len(units.members) == num else units.name
