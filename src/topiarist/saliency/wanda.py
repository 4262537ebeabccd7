"""Wanda: a weight matters as much as what it is multiplied by, among the weights of its output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topiarist.errors import InputError, nearest
from topiarist.saliency.base import Slices
from topiarist.stats import Need
from topiarist.stats.weight_inputs import InputNorms, WeightNorms

_GROUPS = ("output", "layer")


@dataclass(frozen=True)
class Wanda:
    """|w_ij| · ‖X_j‖₂ (Sun et al. 2023, arXiv:2306.11695), X_j all that weight ij is multiplied by.

    With ``among="output"``, as in the paper, single weights compete with those of the same output only: the score is
    (r + m / (m + mean m)) / (number of inputs), r the rank of the weight in its row and m = |w_ij| ‖X_j‖. So every
    row loses the same number under any budget that the rows share evenly, and one more or less under any other, and
    layers are comparable. ``among="layer"`` is m itself. For larger units it is the sum of m over their entries.

    Raises:
        InputError: ``among`` is neither.

    Example:
        >>> from topiarist.plan import Member, Units
        >>> norms = InputNorms((torch.tensor([[1.0], [9.0]]),), (torch.tensor([[0], [0]]),))
        >>> units, weight = Units("w", 2, (Member("w"),)), torch.tensor([[3.0], [-1.0]])
        >>> Wanda("layer")(Slices(units, (weight,), {WeightNorms: norms}))
        tensor([3., 9.], dtype=torch.float64)
    """

    among: str = "output"
    needs: ClassVar[frozenset[Need]] = frozenset({WeightNorms})

    def __post_init__(self) -> None:
        if self.among not in _GROUPS:
            raise InputError(f"weights compete among those of an output or a layer, got {self.among!r} "
                             f"({nearest(self.among, _GROUPS)})")  # fmt: skip

    def __call__(self, slices: Slices) -> Tensor:
        seen: InputNorms = slices.stats[WeightNorms]
        total = torch.zeros(slices.units.num, dtype=torch.float64)
        for weight, norms in zip(slices.weights, seen.norms, strict=True):
            total = total.to(weight.device) + (weight.detach().double().abs() * norms.to(weight.device)).sum(1)
        members = slices.units.members
        if self.among == "output" and len(members) == 1 and members[0].dim is None and members[0].unit is None:
            return _within_rows(total, seen.outputs[0].flatten().to(total.device))
        return total


def _within_rows(metric: Tensor, row: Tensor) -> Tensor:
    """The rank of each entry in its row, over the length of the row; of equal ranks the lower metric goes first."""
    order = torch.argsort(metric, stable=True)
    order = order[torch.argsort(row[order], stable=True)]  # row by row, each in order
    num = torch.bincount(row)
    starts = torch.cat([num.new_zeros(1), num.cumsum(0)[:-1]])
    rank = torch.empty_like(metric)
    rank[order] = (torch.arange(len(order), device=order.device) - starts[row[order]]).to(metric.dtype)
    share = metric / (metric + metric.mean()).clamp(min=torch.finfo(metric.dtype).tiny)
    return (rank + share) / num[row]
