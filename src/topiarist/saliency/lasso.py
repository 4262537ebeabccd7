"""LASSO channel selection: the units that an ever sparser combination of contributions does without go first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from topiarist.errors import InputError
from topiarist.saliency.base import Slices
from topiarist.stats import Need
from topiarist.stats.contributions import Contributions

_TOLERANCE = 1e-10  # of the largest correlation: how far a solution may be from its optimality conditions
_NUM_SWEEPS, _MOST_ROUNDS = 10, 10_000

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Lasso:
    """Channel selection of He, Zhang, Sun 2017, arXiv:1707.06168: min_β ½ E‖Σ_u (1 − β_u) x̂_u‖² + λ Σ_u a_u |β_u|.

    x̂_u is what unit u adds to the outputs of its consumers; a_u = √G_uu, the scale of x̂_u, makes the choice free of
    scale as ‖W_u‖ = 1 does in the paper. Only G = E x̂ x̂ᵀ is needed. λ falls from where all β are 0 over
    ``num_levels`` levels, each a constant fraction of the one before; the score of a unit is the λ below which it
    takes part, so that c′ units stay as the paper's search for λ finds them. Reconstruct the consumers after a cut.

    Raises:
        InputError: fewer than two levels.
    """

    num_levels: int = 100
    needs: ClassVar[frozenset[Need]] = frozenset({Contributions})

    def __post_init__(self) -> None:
        if self.num_levels < 2:
            raise InputError(f"a path has 2 levels or more, got {self.num_levels!r}; try 100")

    def __call__(self, slices: Slices) -> Tensor:
        gram: Tensor = slices.stats[Contributions]
        scale = gram.diagonal().clamp(min=0.0).sqrt()
        unit = torch.where(torch.outer(scale, scale) > 0, gram / torch.outer(scale, scale), 0.0)
        target = torch.where(scale > 0, gram.sum(1) / scale, 0.0)  # correlation of each contribution with the whole
        highest = float(target.abs().max())
        score, beta = torch.zeros_like(target), torch.zeros_like(target)
        if highest == 0.0:
            return score
        waiting = scale > 0
        above = highest
        for level in torch.logspace(0, -4, self.num_levels, dtype=torch.float64)[1:].tolist():
            below = highest * level
            pull = (target - unit @ beta).abs()  # at the level above: who pulls hardest comes in first
            beta = lasso(unit, target, below, beta)
            entered = waiting & (beta != 0)
            score[entered] = pull[entered].clamp(below, above)
            waiting, above = waiting & ~entered, below
        left = (target - unit @ beta).abs()
        return torch.where(waiting, left.clamp(max=above), score)


def lasso(gram: Tensor, target: Tensor, penalty: float, start: Tensor) -> Tensor:
    """argmin_β ½ βᵀ G β − targetᵀ β + penalty · ‖β‖₁ by coordinate descent, from ``start``: float64 (num units,).

    Every few sweeps the equations of the signs found so far are solved, which ends it once they are right. It stops
    where the optimality conditions hold: target − G β is penalty · sign(β) where β ≠ 0, no more than the penalty in
    magnitude elsewhere.

    Raises:
        InputError: that does not happen, as with a matrix that is not positive semidefinite.

    Example:
        >>> lasso(torch.eye(2, dtype=torch.float64), torch.tensor([3.0, 0.5]).double(), 1.0, torch.zeros(2).double())
        tensor([2., 0.], dtype=torch.float64)
    """
    allowed = _TOLERANCE * max(1.0, float(target.abs().max()))
    beta, residual = start.numpy().copy(), (target - gram @ start).numpy()
    columns, curvature = gram.numpy(), gram.diagonal().tolist()
    for _ in range(_MOST_ROUNDS):
        pulled = (np.abs(residual) > penalty + allowed) | (beta != 0)
        active = [u for u in np.flatnonzero(pulled).tolist() if curvature[u] > 0]
        for _ in range(_NUM_SWEEPS):
            _sweep(beta, residual, columns, curvature, active, penalty)
        for found in (_solved(beta, columns, target.numpy(), penalty), torch.from_numpy(beta)):
            if violation(target - gram @ found, found, penalty) <= allowed:
                return found
    raise InputError("the selection of channels does not settle: are the activations finite? try saliency='thinet'")


def _sweep(
    beta: Array, residual: Array, columns: Array, curvature: Sequence[float], active: Sequence[int], penalty: float
) -> None:
    """Move each coefficient to its own optimum, one after the other, in place."""
    for u in active:
        old = float(beta[u])
        pull = float(residual[u]) + curvature[u] * old
        new = math.copysign(max(abs(pull) - penalty, 0.0) / curvature[u], pull)
        if new != old:
            beta[u] = new
            np.subtract(residual, (new - old) * columns[u], out=residual)


def _solved(beta: Array, columns: Array, target: Array, penalty: float) -> Tensor:
    """The coefficients that are best as long as each keeps its sign, and zero stays zero; NaN where one would turn."""
    support, found = np.flatnonzero(beta), np.zeros_like(beta)
    signs = np.sign(beta[support])
    found[support] = np.linalg.lstsq(columns[np.ix_(support, support)], target[support] - penalty * signs, rcond=None)[
        0
    ]
    return torch.from_numpy(np.where(np.array_equal(np.sign(found[support]), signs), found, np.nan))


def violation(residual: Tensor, beta: Tensor, penalty: float) -> float:
    """How far from optimal: the largest breach of the conditions of Karush, Kuhn and Tucker."""
    inside = (residual.abs() - penalty).clamp(min=0.0).masked_fill(beta != 0, 0.0)
    at = (residual - penalty * beta.sign()).abs().masked_fill(beta == 0, 0.0)
    worst = float(torch.maximum(inside, at).max())
    return math.inf if math.isnan(worst) else worst
