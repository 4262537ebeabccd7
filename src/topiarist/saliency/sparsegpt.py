"""SparseGPT: the removal of Optimal Brain Surgeon at the cost of one Cholesky factor a layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from topiarist.errors import InputError
from topiarist.saliency.base import Slices
from topiarist.saliency.hessian import check_damping, inverse
from topiarist.saliency.layers import Quotas, chosen_first, each_group, layer_of, parse_pattern
from topiarist.stats import Need, Statistics
from topiarist.stats.weight_inputs import WeightGrams


@dataclass(frozen=True)
class SparseGPT:
    """Frantar & Alistarh 2023, arXiv:2301.00774: columns from left to right, each weight that goes is made up for by
    those to its right, ŵ_: ← ŵ_: − ŵ_c / U_cc · U_{c:}, with UᵀU = H⁻¹ and H = E x xᵀ + damping · mean(diag) · I.

    What goes is chosen in blocks of ``block`` columns, when the columns before them are done: the ``sparsity`` of
    lowest w² / U_cc² over all rows, or with a ``pattern`` n:m (that of the structure unless given) n of every m stay.
    Scores of what the algorithm removes lie in [−1, 0), those of the rest in [0, 1): a budget of that same sparsity,
    shared evenly over layers, removes exactly its choice, and others go by w² / U_cc². `topiarist.prune` then sets the
    weights that are left to the ones that the algorithm arrives at.

    That is the least-squares solution on what is left where all that goes of a row stands before all that stays, or
    inputs are uncorrelated; elsewhere weights to the left can no longer help, and `OBC` is the exact one.

    Raises:
        InputError: a sparsity outside [0, 1], a block below 1, a negative damping or no pattern; when called, units
            are not single weights.
    """

    sparsity: float = 0.5
    pattern: str | None = None
    damping: float = 0.01
    block: int = 128
    needs: ClassVar[frozenset[Need]] = frozenset({WeightGrams})

    def __post_init__(self) -> None:
        check_damping(self.damping)
        if not 0.0 <= self.sparsity <= 1.0:
            raise InputError(f"sparsity lies in [0, 1], got {self.sparsity!r}")
        if self.block < 1:
            raise InputError(f"a block has 1 column or more, got {self.block!r}; try 128")
        if self.pattern is not None:
            parse_pattern(self.pattern)

    def with_pattern(self, pattern: str) -> SparseGPT:
        """The same for a structure n:m, unless a pattern was given."""
        return self if self.pattern is not None else replace(self, pattern=pattern)

    def __call__(self, slices: Slices) -> Tensor:
        weight, gram = layer_of(slices, WeightGrams)
        quotas = None if self.pattern is None else Quotas.of(self.pattern, gram.layout)
        parts = []
        for matrix, matrix_gram in zip(gram.layout.matrix(weight), gram.matrix, strict=True):
            _, gone, costs = self.solve(matrix, matrix_gram, quotas=quotas)
            parts.append(chosen_first(costs, gone))
        return gram.layout.weight(torch.stack(parts)).flatten()

    def compensate(
        self, weights: Mapping[str, Tensor], removed: Mapping[str, Tensor], stats: Statistics
    ) -> Mapping[str, Tensor]:
        """The weights that the algorithm arrives at when it removes just these."""
        return each_group(weights, removed, stats[WeightGrams], lambda w, gram, gone: self.solve(w, gram, gone)[0])

    def solve(
        self, weight: Tensor, gram: Tensor, gone: Tensor | None = None, quotas: Quotas | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One layer: (outputs, inputs) and E x xᵀ to the new weights, what goes, and w² / U_cc² when it was judged.

        ``gone`` is what goes, where that is settled.
        """
        factor = torch.linalg.cholesky(inverse(gram, self.damping), upper=True)
        left = weight.double().masked_fill(gram.diagonal() <= 0, 0.0)
        costs, chosen = torch.zeros_like(left), torch.zeros_like(left, dtype=torch.bool) if gone is None else gone
        for start, end in _blocks(weight.shape[1], self.block, quotas):
            if gone is None and quotas is None:
                costs[:, start:end] = (left / factor.diagonal()).square()[:, start:end]
                chosen[:, start:end] = _lowest(costs[:, start:end], self.sparsity)
            errors = torch.zeros_like(left[:, start:end])
            for c in range(start, end):
                if gone is None and quotas is not None:
                    _judge_run(left, factor, quotas, c, chosen, costs)
                error = errors[:, c - start] = torch.where(chosen[:, c], left[:, c], 0.0) / factor[c, c]
                left[:, c:end] -= error[:, None] * factor[c, c:end]
            left[:, end:] -= errors @ factor[start:end, end:]
        return left.masked_fill(chosen, 0.0), chosen, costs


def _blocks(num: int, block: int, quotas: Quotas | None) -> list[tuple[int, int]]:
    """Blocks of columns, each as long as asked for, and longer where a run of inputs would be torn."""
    reach = list(range(num))
    if quotas is not None:
        last = torch.zeros_like(quotas.most).scatter_reduce_(0, quotas.runs, torch.arange(num), "amax")
        reach = last[quotas.runs].cummax(0).values.tolist()
    found, start = [], 0
    for c in range(num):
        if reach[c] == c and (c + 1 - start >= block or c + 1 == num):
            found.append((start, c + 1))
            start = c + 1
    return found


def _lowest(costs: Tensor, share: float) -> Tensor:
    """Mark exactly the share of lowest costs, over all rows."""
    order = torch.argsort(costs.flatten(), stable=True)[: int(share * costs.numel() + 0.5)]
    mark = torch.zeros(costs.numel(), dtype=torch.bool, device=costs.device)
    mark[order] = True
    return mark.view(costs.shape)


def _judge_run(left: Tensor, factor: Tensor, quotas: Quotas, c: int, chosen: Tensor, costs: Tensor) -> None:
    """Choose among the inputs of a run when its first one is reached."""
    run = (quotas.runs == quotas.runs[c]).nonzero().flatten()
    if int(run[0]) == c:
        costs[:, run] = (left[:, run] / factor.diagonal()[run]).square()
        lowest = torch.argsort(costs[:, run], dim=1, stable=True)[:, : int(quotas.most[quotas.runs[c]])]
        chosen[:, run] = torch.zeros_like(chosen[:, run]).scatter_(1, lowest, torch.ones_like(lowest, dtype=torch.bool))
