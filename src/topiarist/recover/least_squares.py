"""Least squares for one product with a weight: ridge towards the weights there are, chosen by rows held out.

    min over W, c of  Σ ‖y − W x − c‖² + λ ‖W − W₀‖²

is solved in float64 from the centred Gram matrix of x by Cholesky. Where a relu follows, the targets that it cuts off
only bound the prediction from above: y ← min(ŷ, 0) there, again and again, each time with the same factor, which
lowers Σ ‖relu(y) − relu(ŷ)‖² (Zhang et al. 2016, "Accelerating very deep convolutional networks", section 2.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGES = (1e-10, 1e-4, 1e-3, 1e-2, 1e-1)  # of the mean diagonal of the Gram matrix
_CHUNK = 8192  # rows at a time
_ROUNDS = 10  # for a relu: later ones change little


@dataclass(frozen=True, eq=False)
class Rows:
    """What one output is a function of, and what it should be.

    ``inputs`` is (rows, features), ``targets`` (rows, outputs); ``offset``, of that shape or None, is added to the
    prediction before anything is compared; ``scale`` (outputs,) is what one unit of output is worth.
    """

    inputs: Tensor
    targets: Tensor
    offset: Tensor
    scale: Tensor
    is_relu: bool = False

    def part(self, rows: slice | Tensor, outputs: Tensor | None = None) -> Rows:
        """Some of the rows, and of the outputs."""
        columns = slice(None) if outputs is None else outputs
        targets, offset = self.targets[rows][:, columns], self.offset[rows][:, columns]
        return Rows(self.inputs[rows], targets, offset, self.scale[columns], self.is_relu)

    def error(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Σ ‖target − prediction‖² of each output, float64 of shape (outputs,), past the relu if one follows."""
        total = torch.zeros_like(bias)
        for chunk in range(0, len(self.inputs), _CHUNK):
            some = self.part(slice(chunk, chunk + _CHUNK))
            wanted, found = some.targets.double(), some.predict(weight, bias)
            if self.is_relu:
                wanted, found = wanted.relu(), found.relu()
            total += (wanted - found).square_().sum(0)
        return total

    def predict(self, weight: Tensor, bias: Tensor) -> Tensor:
        """(x Wᵀ + c) · scale + offset."""
        return (self.inputs.double() @ weight.T + bias) * self.scale + self.offset


class _Normal:
    """The normal equations of some rows, centred where there is a bias."""

    def __init__(self, rows: Rows, free: Tensor, prior: Tensor, has_bias: bool) -> None:
        self.rows, self.free, self.prior, self.has_bias = rows, free, prior, has_bias
        self.x = rows.inputs[:, free].double()
        self.mean = self.x.mean(0) if has_bias else torch.zeros_like(self.x[0])
        self.gram = torch.zeros(len(self.mean), len(self.mean), dtype=torch.float64, device=self.x.device)
        for some in torch.split(self.x, _CHUNK):
            centred = some - self.mean
            self.gram += centred.T @ centred
        self.unit = self.gram.diagonal().mean().clamp(min=1e-300)
        self._factor: tuple[float, Tensor] | None = None

    def solve(self, ridge: float, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Weights (outputs, features) and bias (outputs,) for targets (rows, outputs)."""
        y = (targets - self.rows.offset) / self.rows.scale
        middle = y.mean(0) if self.has_bias else torch.zeros_like(y[0])
        past = self.prior[:, self.free]
        cross = torch.zeros(len(self.mean), y.shape[1], dtype=torch.float64, device=y.device)
        for x, some in zip(torch.split(self.x, _CHUNK), torch.split(y, _CHUNK), strict=True):
            cross += (x - self.mean).T @ (some - middle)
        change = torch.cholesky_solve(cross - self.gram @ past.T, self._cholesky(ridge)).T
        weight = self.prior.clone()
        weight[:, self.free] = past + change
        return weight, middle - weight[:, self.free] @ self.mean

    def _cholesky(self, ridge: float) -> Tensor:
        if self._factor is None or self._factor[0] != ridge:
            factor, failed, jitter = self.gram, 1, ridge
            while failed:  # rounding may cost a singular matrix its last digits
                damped = self.gram + torch.eye(len(self.gram), dtype=torch.float64, device=self.gram.device) * (
                    jitter * self.unit
                )
                factor, failed = torch.linalg.cholesky_ex(damped)
                failed, jitter = int(failed), max(10 * jitter, 1e-14)
            self._factor = ridge, factor
        return self._factor[1]

    def fit(self, ridge: float) -> tuple[Tensor, Tensor]:
        """The solution, past the relu if one follows."""
        targets = self.rows.targets.double()
        weight, bias = self.solve(ridge, targets)
        for _ in range(_ROUNDS if self.rows.is_relu else 0):
            bounded = self.rows.predict(weight, bias).clamp_(max=0)
            weight, bias = self.solve(ridge, torch.where(targets > 0, targets, bounded))
        return weight, bias


def refit(
    rows: Rows, held_out: Tensor, free: Tensor, prior: Tensor, *, has_bias: bool, ridge: float | None = None
) -> tuple[Tensor, Tensor]:
    """The weights (outputs, features) and biases (outputs,) that fit ``rows`` best; ``prior`` with no bias if none do.

    Args:
        held_out: bool of shape (rows,): those that choose the ridge and on which the error must fall.
        free: bool of shape (features,): the others keep the weights of ``prior``, (outputs, features), all zero there.
        has_bias: whether there is a bias to add to; else it is zero.
        ridge: λ over the mean diagonal of the Gram matrix; None chooses among `RIDGES`.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0]], dtype=torch.float64)
        >>> rows = Rows(x, 2 * x + 1, torch.zeros_like(x), torch.ones(1, dtype=torch.float64))
        >>> held = torch.tensor([False, False, False, True])
        >>> weight, bias = refit(rows, held, torch.tensor([True]), torch.zeros(1, 1).double(), has_bias=True, ridge=0)
        >>> round(weight.item(), 9), round(bias.item(), 9)
        (2.0, 1.0)
    """
    judge = rows.part(held_out)
    none = torch.zeros(len(prior), dtype=torch.float64, device=prior.device)
    before = judge.error(prior, none).sum()
    train = _Normal(rows.part(~held_out), free, prior, has_bias)
    tried = [(judge.error(*train.solve(r, train.rows.targets.double())).sum(), r) for r in _ridges(ridge)]
    best = min(tried)[1]
    if rows.is_relu:
        tried = [(judge.error(*train.fit(best)).sum(), best)]
    if not min(tried)[0] < before:
        return prior, none
    return _Normal(rows, free, prior, has_bias).fit(best)


def _ridges(ridge: float | None) -> tuple[float, ...]:
    return RIDGES if ridge is None else (ridge,)
