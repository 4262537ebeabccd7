"""What every criterion sees (`Slices`), what it is (`Saliency`), and the one door through which scores come."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from topiarist.errors import InputError
from topiarist.plan import Units
from topiarist.saliency.finite import check_finite
from topiarist.stats import Need, Statistics
from topiarist.stats.statistic import name_of


@dataclass(frozen=True, eq=False)
class Slices:
    """The tensors of one set of units, cut into units: row j of each tensor is what unit j has there.

    ``weights`` holds one tensor of shape ``(num units, elements)`` per member that is a parameter. ``stats`` maps what
    the criterion ``needs`` to what was collected: a tuple of tensors with the shapes of the weights
    (``stats["gradients"]``), a tensor whose first dimension is the unit, or what else the statistic gives.

    Raises:
        InputError: a tensor does not have one row per unit, or gradients do not fit the weights.
    """

    units: Units
    weights: tuple[Tensor, ...]
    stats: Mapping[Need, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for tensor in (*self.weights, *self.gradients):
            if tensor.ndim != 2 or tensor.shape[0] != self.units.num:
                raise InputError(
                    f"slices of {self.units.name!r} have shape (num units={self.units.num}, elements), "
                    f"got {tuple(tensor.shape)}"
                )
        if self.gradients and [g.shape for g in self.gradients] != [w.shape for w in self.weights]:
            raise InputError(f"gradients of {self.units.name!r} do not have the shapes of the weights")

    @property
    def gradients(self) -> tuple[Tensor, ...]:
        """The mean gradients, with the shapes of the weights; empty where they were not asked for."""
        return tuple(self.stats.get("gradients", ()))


class Saliency(Protocol):
    """The score of units: any callable of this shape will do.

    It returns floats of shape ``(num units,)``; low scores go first. It sees no module and changes none of its
    inputs. What it needs beyond weights it names in ``needs``, a frozenset of words of `topiarist.stats.words`
    (``"gradients"``) or of functions that start a `topiarist.stats.Statistic` of one's own; a callable without the
    attribute needs nothing. ``is_comparable = True`` says that scores of different layers compare as they are, so that
    a global ranking does not normalize them. See `Compensating` for criteria that also say what becomes of the weights
    that stay.
    """

    def __call__(self, slices: Slices) -> Tensor:
        """Floats of shape ``(num units,)``."""
        ...


@runtime_checkable
class Compensating(Protocol):
    """A criterion that makes up for what goes by changing what stays, as Optimal Brain Surgeon does."""

    def compensate(
        self, weights: Mapping[str, Tensor], removed: Mapping[str, Tensor], stats: Statistics
    ) -> Mapping[str, Tensor]:
        """New values of the parameters that change, by name; `topiarist.prune` sets them right after each cut.

        Args:
            weights: every parameter before this cut; changes none of them.
            removed: bool of a parameter's shape for each that loses entries, True where one is removed, now or before.
            stats: what the criterion needs, as collected before the cut.
        """
        ...


def told(criterion: Saliency, pattern: str | None) -> Saliency:
    """The criterion, told the ``"n:m"`` of the structure where there is one and it asks: it has ``with_pattern``.

    Example:
        >>> from topiarist.saliency import OBC
        >>> told(OBC(), "2:4").pattern, told(OBC(pattern="4:8"), "2:4").pattern
        ('2:4', '4:8')
    """
    tell = getattr(criterion, "with_pattern", None)
    return criterion if pattern is None or tell is None else tell(pattern)


def needs(criterion: Saliency) -> frozenset[Need]:
    """What the criterion needs beyond weights."""
    return frozenset(getattr(criterion, "needs", frozenset()))


def score(criterion: Saliency, slices: Slices, *, checked: bool = False) -> Tensor:
    """The criterion's scores of these units, checked on the way in and out: floats of shape ``(num units,)``.

    ``checked`` says that weights and statistics are known to be finite.

    Raises:
        InputError: weights or gradients are NaN or infinite, what the criterion needs is not there, or it returns
            anything but finite floats, one per unit.

    Example:
        >>> slices = Slices(Units("fc", 2, ()), (torch.tensor([[1.0, -2.0], [0.5, 0.0]]),))
        >>> score(lambda slices: slices.weights[0].abs().amax(1), slices)
        tensor([2.0000, 0.5000])
    """
    units = slices.units
    for what, tensors in () if checked else (("weights", slices.weights), *slices.stats.items()):
        for place, tensor in enumerate(tensors if isinstance(tensors, tuple) else ()):
            if isinstance(tensor, Tensor):
                check_finite({_tensor_name(units, place, len(tensors)): tensor}, str(what))
    missing = [name_of(need) for need in needs(criterion) if need not in slices.stats]
    if missing and slices.weights:
        raise InputError(f"{criterion} needs {', '.join(missing)} of {units.name!r}; pass data and loss")
    with torch.no_grad():
        scores = criterion(slices)
    if not isinstance(scores, Tensor) or scores.shape != (units.num,) or not scores.is_floating_point():
        found = f"{scores.dtype} of shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else repr(scores)
        raise InputError(f"{criterion} must return floats of shape ({units.num},) for {units.name!r}, got {found}")
    if scores.is_meta:
        raise InputError(
            f"{criterion} gives no values for {units.name!r}: weights on the meta device have none; "
            f"try saliency='random', a function of the unit's index, or load the weights first"
        )
    check_finite({units.name: scores}, "scores")
    return scores.detach()


def _tensor_name(units: Units, place: int, num: int) -> str:
    return units.members[place].tensor if len(units.members) == num else units.name
