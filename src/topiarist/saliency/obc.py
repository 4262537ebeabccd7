"""Optimal Brain Compression: the exact greedy removal of single weights from a layer, row by row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from topiarist.saliency.base import Slices
from topiarist.saliency.hessian import check_damping, damped, inverse
from topiarist.saliency.layers import Quotas, chosen_first, each_group, layer_of, parse_pattern
from topiarist.stats import Need, Statistics
from topiarist.stats.weight_inputs import WeightGrams

_BYTES = 1 << 27  # of inverse Hessians at a time, one a row


@dataclass(frozen=True)
class OBC:
    """ExactOBS (Frantar & Alistarh 2022, arXiv:2208.11580): E‖(w − ŵ)ᵀx‖² of each row, minimised weight by weight.

    With H = E x xᵀ + λ I, λ = damping · mean(diag): remove p = argmin w_p² / [H⁻¹]_pp, let the others make up for it,
    w ← w − H⁻¹_{:p} w_p / [H⁻¹]_pp, take p out of H⁻¹, and go on. The score of a weight is the loss at its removal,
    and never less than that of the one before in its row, so that a budget over a layer takes each row as far as the
    losses say. After a cut `topiarist.prune` gives what is left the exact least-squares solution.

    With a ``pattern`` n:m (that of the structure unless given) no m inputs in a row lose more than m − n weights before
    all have; the scores of these lie in [−1, 0), those of the rest in [0, 1).

    It costs (inputs)³ a row: for layers of hundreds of inputs; beyond, use `SparseGPT`.

    Raises:
        InputError: the damping is negative, the pattern is none; when called, units are not single weights.
    """

    damping: float = 0.01
    pattern: str | None = None
    needs: ClassVar[frozenset[Need]] = frozenset({WeightGrams})

    def __post_init__(self) -> None:
        check_damping(self.damping)
        if self.pattern is not None:
            parse_pattern(self.pattern)

    def with_pattern(self, pattern: str) -> OBC:
        """The same for a structure n:m, unless a pattern was given."""
        return self if self.pattern is not None else replace(self, pattern=pattern)

    def __call__(self, slices: Slices) -> Tensor:
        weight, gram = layer_of(slices, WeightGrams)
        matrix = gram.layout.matrix(weight)
        quotas = None if self.pattern is None else Quotas.of(self.pattern, gram.layout)
        losses = torch.stack(
            [
                trace(w, inverse(g, self.damping), g.diagonal() <= 0, quotas)
                for w, g in zip(matrix, gram.matrix, strict=True)
            ]
        )
        if quotas is not None:
            losses = chosen_first(losses, losses.argsort(2).argsort(2) < quotas.total)
        return gram.layout.weight(losses).flatten()

    def compensate(
        self, weights: Mapping[str, Tensor], removed: Mapping[str, Tensor], stats: Statistics
    ) -> Mapping[str, Tensor]:
        """The least-squares solution on what is left of each weight."""
        return each_group(weights, removed, stats[WeightGrams], self._solved)

    def _solved(self, weight: Tensor, gram: Tensor, gone: Tensor) -> Tensor:
        return least_squares(weight, damped(gram, self.damping), gone)


def trace(weight: Tensor, inverted: Tensor, dead: Tensor, quotas: Quotas | None = None) -> Tensor:
    """The loss at which each weight of (outputs, inputs) goes, one row after the other; always rising within a row.

    ``inverted`` is H⁻¹ and ``dead`` says which inputs are always zero: their weights go first, at no loss. With
    ``quotas`` no run of inputs loses more than its own before every one has.
    """
    num = weight.shape[1]
    rows = max(1, _BYTES // (8 * num * num))
    work = weight.double().masked_fill(dead, 0.0)
    return torch.cat([_trace(part, inverted, quotas) for part in torch.split(work, rows)])


def _trace(weight: Tensor, inverted: Tensor, quotas: Quotas | None) -> Tensor:
    left, inverses = weight.clone(), inverted.expand(len(weight), -1, -1).clone()
    losses, at, last = torch.zeros_like(left), torch.arange(len(left), device=left.device), left.new_zeros(len(left))
    gone = torch.zeros_like(left, dtype=torch.bool)
    for number in range(left.shape[1]):
        diagonal = inverses.diagonal(dim1=1, dim2=2)
        held = gone if quotas is None or number >= quotas.total else gone | quotas.met(gone)
        cost, p = (left.square() / diagonal).masked_fill(held, torch.inf).min(1)
        last = torch.maximum(cost, torch.nextafter(last, torch.full_like(last, torch.inf)))
        losses[at, p] = last
        column, pivot = inverses[at, :, p].clone(), diagonal[at, p].clone()
        left -= column * (left[at, p] / pivot)[:, None]
        inverses.baddbmm_(column[:, :, None], (column / pivot[:, None])[:, None, :], alpha=-1)
        gone[at, p] = True
        left.masked_fill_(gone, 0.0)
        inverses[at, p, :] = inverses[at, :, p] = 0.0
        inverses[at, p, p] = 1.0
    return losses


def least_squares(weight: Tensor, hessian: Tensor, gone: Tensor) -> Tensor:
    """argmin over ŵ, zero where ``gone``, of (w − ŵ) H (w − ŵ)ᵀ for each row: (outputs, inputs), float64.

    The normal equations of what is left, H_SS ŵ_S = H_S: w; rows in which nothing goes stay as they are, bit for bit.
    """
    num = weight.shape[1]
    target = weight.double() @ hessian
    solved = weight.double().clone()
    touched = gone.any(1).nonzero().flatten()
    for rows in torch.split(touched, max(1, _BYTES // (8 * num * num))):
        stays = (~gone[rows]).double()
        system = hessian * stays[:, :, None] * stays[:, None, :]
        system.diagonal(dim1=1, dim2=2).add_(1 - stays)
        solved[rows] = torch.linalg.solve(system, (target[rows] * stays)[:, :, None])[:, :, 0] * stays
    return solved
