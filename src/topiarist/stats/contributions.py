"""What each unit adds to the outputs of its consumers, and how these contributions go together."""

from __future__ import annotations

import torch
from torch import Tensor

from topiarist.errors import InputError
from topiarist.plan import Member, Units
from topiarist.stats.statistic import Subject
from topiarist.stats.weight_inputs import InputGram, WeightGrams


class Contributions(WeightGrams):
    """The Gram matrix of contributions: G_uv = E Σ_k x̂_ku x̂_kv, float64 of shape (num units, num units).

    x̂_ku = Σ_{i ∈ u} w_ki x_i is what unit u adds to output k of a consumer, so that removing a set T changes all
    outputs by E‖Δ‖² = 1ᵀ G_TT 1 (Luo, Wu, Lin 2017). It follows from the Gram matrix of the consumer's inputs alone,
    G_uv = Σ_{i ∈ u, j ∈ v} (WᵀW)_ij E x_i x_j, over all data; several consumers add up.
    """

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        held = {member.tensor for units in subject.units for member in units.members if member.side == "in"}
        self._shapes = {name: shape for name, shape in self._shapes.items() if name in held}
        self._weights = {name: subject.parameters[name] for name in self._shapes}

    def of(self, units: Units) -> Tensor:  # type: ignore[override]  # of units, where the parent gives those of weights
        """The Gram matrix of the units' contributions.

        Raises:
            InputError: nothing consumes them.
        """
        members = [m for m in units.members if m.side == "in" and m.tensor in self._sums]
        if not members:
            raise InputError(
                f"no weight consumes the units of {units.name!r}; keep what makes them with keep=[{units.layer!r}], "
                f"or try saliency='l2'"
            )
        return torch.stack([self._of_member(m, units.num) for m in members]).sum(0)

    def _of_member(self, member: Member, num: int) -> Tensor:
        gram = self.gram(member.tensor)
        weight = gram.layout.matrix(self._weights[member.tensor].detach().double())
        together = ((weight.mT @ weight) * gram.matrix).cpu()
        total = torch.zeros(num, num, dtype=torch.float64)
        for unit, part in zip(_unit_of_input(member, gram), together, strict=True):
            own = unit >= 0
            rows = torch.zeros(num, int(own.sum()), dtype=torch.float64).index_add_(0, unit[own], part[own][:, own])
            total.index_add_(1, unit[own], rows)
        return total


def _unit_of_input(member: Member, gram: InputGram) -> Tensor:
    """Which unit each input of a weight belongs to, −1 for none: int64 (groups, inputs)."""
    assert member.dim is not None and member.unit is not None  # noqa: S101, PT018 entries have no side
    shape = [1] * len(gram.layout.shape)
    shape[member.dim] = -1
    return gram.layout.matrix(member.unit.cpu().view(shape).expand(gram.layout.shape).contiguous())[:, 0]
