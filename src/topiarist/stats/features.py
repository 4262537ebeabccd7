"""The inputs of consumers feature by feature, with the weights that each is multiplied by."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from topiarist.errors import InputError
from topiarist.plan import Member, Units
from topiarist.stats.activations import Moments
from topiarist.stats.cut import by_unit
from topiarist.stats.layout import Layout
from topiarist.stats.statistic import Statistic, Subject
from topiarist.stats.uses import Use


class Features(NamedTuple):
    """Of each feature j that a unit gives one consumer: float64 (num units, features of a unit).

    ``variance`` Var x_j and ``norm`` √ Σ x_j² over samples and positions; of the weights w_j that it is multiplied by
    ``squares`` Σ w² and ``magnitude``, the mean of |w|.
    """

    variance: Tensor
    norm: Tensor
    squares: Tensor
    magnitude: Tensor


class ConsumedFeatures(Statistic):
    """The features that units give each of their consumers."""

    reads = "inputs"
    watches = "forward"

    def __init__(self, subject: Subject) -> None:
        held = {member.tensor for units in subject.units for member in units.members if member.side == "in"}
        self._weights = {name: p for name, p in subject.parameters.items() if name in held}
        self._moments: dict[str, tuple[Moments, Layout]] = {}

    def on_use(self, use: Use) -> None:
        """Take in the inputs of a consumer."""
        if use.weight in self._weights:
            layout = Layout.of(use, tuple(self._weights[use.weight].shape))
            self._moments.setdefault(use.weight, (Moments(), layout))[0].add(use)

    def of(self, units: Units) -> tuple[Features, ...]:
        """One for each consumer.

        Raises:
            InputError: nothing consumes the units.
        """
        members = [m for m in units.members if m.side == "in" and m.tensor in self._moments]
        if not members:
            raise InputError(
                f"no weight consumes the units of {units.name!r}; keep what makes them with keep=[{units.layer!r}], "
                f"or try saliency='l2'"
            )
        return tuple(self._of_member(m, units.num) for m in members)

    def _of_member(self, member: Member, num: int) -> Features:
        moments, layout = self._moments[member.tensor]
        matrix = layout.matrix(self._weights[member.tensor].detach().double())
        groups, outputs, _ = matrix.shape
        weights = matrix.view(groups, outputs, moments.mean.shape[1], -1)  # the last are the places of a kernel
        known = moments.variance, moments.norm, weights.square().sum((1, 3)), weights.abs().mean((1, 3))
        return Features(*(by_unit(each, Member(member.tensor, 1, member.unit), num) for each in known))
