"""What the loss becomes when a unit is left out: the truth that other criteria estimate, at a forward pass a unit."""

from __future__ import annotations

import torch
from torch import Tensor

from topiarist.inputs import call
from topiarist.plan import Member, Units
from topiarist.stats.statistic import Batch, Statistic, Subject


class LossChanges(Statistic):
    """L(without unit j) − L, mean over batches, for every unit: float64 (num units,).

    A unit is left out as `topiarist.mask` does it: all its entries in all parameters are zero. Weights are as they
    were afterwards, bit for bit.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.changes = {u.name: torch.zeros(u.num, dtype=torch.float64) for u in subject.units}
        self._number = 0

    def on_batch(self, batch: Batch) -> None:
        """Leave out each unit in turn."""
        assert batch.loss is not None  # noqa: S101 it reads the loss
        base = batch.loss.item()
        for units in self.subject.units:
            for j in range(units.num):
                self.changes[units.name][j] += self._without(batch, units, j) - base
        self._number = batch.number

    @torch.no_grad()
    def _without(self, batch: Batch, units: Units, j: int) -> float:
        assert batch.loss_function is not None  # noqa: S101 it reads the loss
        parameters = self.subject.parameters
        members = [m for m in units.members if m.tensor in parameters]
        before = {m.tensor: parameters[m.tensor].clone() for m in members}
        try:
            for member in members:
                _zero(parameters[member.tensor], member, j)
            return float(batch.loss_function(call(self.subject.model, batch.inputs), batch.targets))
        finally:
            for name, values in before.items():
                parameters[name].copy_(values)

    def end(self, turn: int) -> None:
        """From sums to means."""
        for total in self.changes.values():
            total /= self._number

    def of(self, units: Units) -> Tensor:
        """The changes of these units."""
        return self.changes[units.name]


def _zero(tensor: Tensor, member: Member, unit: int) -> None:
    if member.unit is None:
        tensor.view(-1)[unit] = 0
    elif member.dim is None:
        tensor.view(-1)[(member.unit == unit).to(tensor.device)] = 0
    else:
        tensor.index_fill_(member.dim, (member.unit == unit).nonzero().flatten().to(tensor.device), 0)
