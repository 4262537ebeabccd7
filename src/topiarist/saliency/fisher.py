"""Fisher: the loss rises least without weights of small w² E[g²]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topiarist.errors import InputError
from topiarist.saliency.base import Slices


@dataclass(frozen=True)
class Fisher:
    """The second-order change of the loss with the empirical Fisher diagonal for the Hessian's:
    s_j = ½ Σ_m Σ_i (w^m_ji)² E[(g^m_ji)²].

    Theis et al. 2018. ``per="example"`` takes E over examples, as the Fisher matrix is defined; ``per="batch"`` over
    batches, from gradients that are there anyway: with batches of one they are the same, with larger ones it is a
    mixture of Fisher and squared gradient. At zero training error g is zero and says nothing: see `OBD`.

    Raises:
        InputError: ``per`` is another word.

    Example:
        >>> from topiarist.plan import Units
        >>> weights, squares = torch.tensor([[2.0], [1.0]]), torch.tensor([[0.5], [4.0]])
        >>> Fisher(per="batch")(Slices(Units("fc", 2, ()), (weights,), {"squared gradients": (squares,)}))
        tensor([1., 2.], dtype=torch.float64)
    """

    is_comparable: ClassVar[bool] = True
    per: str = "example"

    def __post_init__(self) -> None:
        if self.per not in _NEEDS:
            raise InputError(f"per is 'example' or 'batch', got {self.per!r}")

    @property
    def needs(self) -> frozenset[str]:
        """Squared gradients, of examples or of batches."""
        return frozenset({_NEEDS[self.per]})

    def __call__(self, slices: Slices) -> Tensor:
        return quadratic(slices, slices.stats[_NEEDS[self.per]] if slices.weights else ())


_NEEDS = {"example": "squared gradients of examples", "batch": "squared gradients"}


def quadratic(slices: Slices, diagonal: tuple[Tensor, ...]) -> Tensor:
    """½ Σ h w² over members and elements: float64 (num units,).

    Example:
        >>> from topiarist.plan import Units
        >>> quadratic(Slices(Units("fc", 1, ()), (torch.tensor([[3.0]]),)), (torch.tensor([[2.0]]),))
        tensor([9.], dtype=torch.float64)
    """
    total = torch.zeros(slices.units.num, dtype=torch.float64)
    for weight, curvature in zip(slices.weights, diagonal, strict=True):
        total = total.to(weight.device) + (weight.double().square() * curvature.double()).sum(1) / 2
    return total
