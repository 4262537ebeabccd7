"""The Hessian of a layer's squared error, made invertible, and its inverse."""

from __future__ import annotations

import torch
from torch import Tensor

from topiarist.errors import InputError

_TRIES = 8  # each with ten times the damping of the one before
_SMALLEST = 1e-8  # the least ratio of pivots, √ of that of eigenvalues, and the least damping that is tried anew


def check_damping(damping: float) -> None:
    """Refuse a damping that is none.

    Raises:
        InputError: it is negative or not finite.
    """
    if not 0.0 <= damping < float("inf"):
        raise InputError(f"damping is a share of the mean diagonal, 0 or more, got {damping!r}; try 0.01")


def damped(gram: Tensor, damping: float) -> Tensor:
    """H = Gram + damping · mean(diag) · I, with 1 for inputs that are always zero: (inputs, inputs), float64.

    The squared error of a layer's outputs is quadratic in each of its rows, with this Hessian (up to a factor 2). Where
    it is not positive definite, the damping is ten times as much, and again.

    Raises:
        InputError: that does not help.

    Example:
        >>> damped(torch.tensor([[2.0, 2.0], [2.0, 2.0]]), 0.5)
        tensor([[3., 2.],
                [2., 3.]])
    """
    dead = gram.diagonal() <= 0
    for attempt in range(_TRIES):
        share = damping if attempt == 0 else max(damping, _SMALLEST) * 10.0**attempt
        hessian = gram.clone()
        hessian.diagonal().add_(share * gram.diagonal().mean())[dead] = 1.0
        factor, failed = torch.linalg.cholesky_ex(hessian)
        pivots = factor.diagonal()
        if not int(failed) and bool(pivots.min() > _SMALLEST * pivots.max()):
            return hessian
    raise InputError("the Gram matrix of a layer's inputs is not positive: are the activations finite? try more data")


def inverse(gram: Tensor, damping: float) -> Tensor:
    """The inverse of the damped Hessian.

    Raises:
        InputError: see `damped`.

    Example:
        >>> inverse(torch.tensor([[2.0, 1.0], [1.0, 1.0]]), 0.0)
        tensor([[ 1.0000, -1.0000],
                [-1.0000,  2.0000]])
    """
    return torch.cholesky_inverse(torch.linalg.cholesky(damped(gram, damping)))
