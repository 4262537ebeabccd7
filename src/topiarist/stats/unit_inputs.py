"""The activations of units: what their consumers are multiplied by, after norms and nonlinearities."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from topiarist.errors import InputError
from topiarist.plan import Member, Units
from topiarist.stats.cut import by_unit
from topiarist.stats.statistic import Statistic, Subject
from topiarist.stats.uses import Use


class Activations(NamedTuple):
    """Of each unit, over samples, positions and features: float64 of shape (num units,) each.

    ``variance`` is that of the population, ``zeros`` the share of activations of no more than the threshold.
    """

    mean: Tensor
    magnitude: Tensor
    variance: Tensor
    zeros: Tensor


class Covariance(NamedTuple):
    """How the activations of units vary together: float64.

    ``mean`` is of shape (num units,); ``covariance``, that of the population, of (num units, num units). ``num`` counts
    the observations.
    """

    mean: Tensor
    covariance: Tensor
    num: int


class UnitInputs(Statistic):
    """Sees the activations of units and keeps what subclasses make of them.

    They are the inputs of the weights that consume the units; where a group of channels is a unit, those of the
    grouped convolution; and where no weight consumes it, as keys and queries that only meet one another, the outputs
    of the weights that make it.
    """

    reads = "inputs"
    watches = "forward"

    def __init__(self, subject: Subject) -> None:
        self._members: dict[str, list[tuple[Units, Member]]] = {}
        for units in subject.units:
            consumers = [m for m in units.members if m.side == "in"]
            for member in consumers or [m for m in units.members if m.side == "out"]:
                self._members.setdefault(member.tensor, []).append((units, member))

    def on_use(self, use: Use) -> None:
        """Hand on the activations of every set of units that the weight consumes."""
        for units, member in self._members.get(use.weight, ()):
            for observed in _observed(use, member, units.num):
                self.add(units, use, observed)

    def add(self, units: Units, use: Use, observed: Tensor) -> None:
        """Take in activations: (num units, observations)."""
        raise NotImplementedError

    def require(self, units: Units, count: int) -> None:
        """Refuse units of which nothing was seen.

        Raises:
            InputError: naming the units.
        """
        if count == 0:
            raise InputError(
                f"no product with a weight shows the activations of {units.name!r}; keep what makes it with "
                f"keep=[{units.layer!r}], or try saliency='l2'"
            )


def _observed(use: Use, member: Member, num: int) -> Iterator[Tensor]:
    """The activations of the units in one use of a tensor they live in: (num units, observations)."""
    if member.side == "in":
        if member.dim == use.in_dim:
            yield by_unit(use.features(), replace(member, dim=2), num)
    elif use.window is not None and use.window.groups > 1 and member.dim == 0 and member.unit is not None:
        whole = member.unit.view(use.window.groups, -1)
        if bool((whole == whole[:, :1]).all()):  # the unit is the group
            yield by_unit(use.features(), Member(member.tensor, 1, whole[:, 0]), num)
    elif use.outputs is not None and member.unit is not None:
        dim = 1 if use.window is not None else use.outputs.dim() - 1
        if use.outputs.shape[dim] == len(member.unit):  # all outputs of the weight, not a part of them
            yield by_unit(use.outputs, replace(member, dim=dim), num)


@dataclass(frozen=True)
class UnitMoments:
    """Starts the statistic of the `Activations` of each unit; ``threshold`` is what counts as zero.

    Example:
        >>> from torch import nn
        >>> import topiarist
        >>> from topiarist.stats import collect
        >>> net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1))
        >>> _ = net[0].weight.data.copy_(torch.tensor([[1.0], [-2.0]]))
        >>> axes = topiarist.trace(net, torch.zeros(1, 1))
        >>> subject = Subject(net, tuple(topiarist.structure.Channel().units(axes)))
        >>> moments = UnitMoments()(subject)
        >>> collect([moments], subject, [torch.tensor([[2.0], [-1.0]])])
        >>> moments.of(subject.units[0]).mean
        tensor([1., 1.], dtype=torch.float64)
    """

    threshold: float = 0.0

    def __call__(self, subject: Subject) -> _Moments:
        return _Moments(subject, self.threshold)


class _Moments(UnitInputs):
    def __init__(self, subject: Subject, threshold: float) -> None:
        super().__init__(subject)
        self.threshold = threshold
        self._seen: dict[str, tuple[int, Activations]] = {}

    def add(self, units: Units, use: Use, observed: Tensor) -> None:
        x, num = observed.double(), observed.shape[1]
        mean = x.mean(1)
        new = Activations(mean, x.abs().mean(1), (x - mean[:, None]).square_().mean(1),
                          (observed.abs() <= self.threshold).double().mean(1))  # fmt: skip
        count, old = self._seen.get(units.name, (0, new))
        part = num / (count + num)  # merging as in Chan, Golub, LeVeque 1979: the variance does not cancel
        merged = [a + (b - a) * part for a, b in zip(old, new, strict=True)]
        merged[2] = merged[2] + (new.mean - old.mean).square() * part * (1 - part)
        self._seen[units.name] = (count + num, Activations(*merged))

    def of(self, units: Units) -> Activations:
        """The moments of each unit."""
        count, found = self._seen.get(units.name, (0, None))
        self.require(units, count)
        assert found is not None  # noqa: S101 required above
        return found


@dataclass(frozen=True)
class UnitCovariance:
    """Starts the statistic of how the units of a set vary together: their `Covariance`, n² numbers for n units."""

    def __call__(self, subject: Subject) -> _Covariances:
        return _Covariances(subject)


class _Covariances(UnitInputs):
    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._seen: dict[str, Covariance] = {}

    def add(self, units: Units, use: Use, observed: Tensor) -> None:
        x, num = observed.double(), observed.shape[1]
        mean = x.mean(1)
        x = x - mean[:, None]
        new = Covariance(mean, x @ x.mT / num, num)
        old = self._seen.get(units.name, Covariance(new.mean, new.covariance, 0))
        part, apart = num / (old.num + num), new.mean - old.mean
        self._seen[units.name] = Covariance(
            old.mean + apart * part,
            old.covariance + (new.covariance - old.covariance) * part + torch.outer(apart, apart) * part * (1 - part),
            old.num + num,
        )

    def of(self, units: Units) -> Covariance:
        """The means and covariances of the units."""
        found = self._seen.get(units.name)
        self.require(units, 0 if found is None else found.num)
        assert found is not None  # noqa: S101 required above
        return found
