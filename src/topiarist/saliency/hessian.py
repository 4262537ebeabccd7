"""The Hessian of a layer's squared error, made invertible, and its inverse."""

from __future__ import annotations

import torch
from torch import Tensor

from topiarist.errors import InputError

_TRIES = 8  # each with ten times the damping of the one before


def check_damping(damping: float) -> None:
    """Refuse a damping that is none.

    Raises:
        InputError: it is negative or not finite.
    """
    if not 0.0 <= damping < float("inf"):
        raise InputError(f"damping is a share of the mean diagonal, 0 or more, got {damping!r}; try 0.01")


def damped(gram: Tensor, damping: float) -> Tensor:
    """H = Gram + damping · mean(diag) · I, with 1 for inputs that are always zero: (inputs, inputs), float64.

    The squared error of a layer's outputs is quadratic in each of its rows, with this Hessian (up to a factor 2).
    """
    hessian = gram.clone()
    diagonal = hessian.diagonal()
    dead = diagonal <= 0
    diagonal += damping * diagonal.mean()
    diagonal[dead] = 1.0
    return hessian


def inverse(gram: Tensor, damping: float) -> Tensor:
    """The inverse of the damped Hessian; where it is not positive definite, with ten times the damping, and again.

    Raises:
        InputError: it is not to be had.

    Example:
        >>> inverse(torch.tensor([[2.0, 1.0], [1.0, 1.0]]), 0.0)
        tensor([[ 1.0000, -1.0000],
                [-1.0000,  2.0000]])
    """
    for attempt in range(_TRIES):
        hessian = damped(gram, damping if attempt == 0 else max(damping, 1e-8) * 10.0**attempt)
        factor, failed = torch.linalg.cholesky_ex(hessian)
        if not int(failed):
            found = torch.cholesky_inverse(factor)
            if bool(torch.isfinite(found).all()):
                return found
    raise InputError("the Gram matrix of a layer's inputs is not positive: are the activations finite? try more data")
