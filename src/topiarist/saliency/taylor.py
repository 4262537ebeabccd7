"""Taylor 2019: the loss changes least without units whose gates have small squared gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from topiarist.errors import InputError
from topiarist.saliency.base import Slices


@dataclass(frozen=True)
class Taylor:
    """The squared first-order change of the loss when a unit's gate closes: s_j = E[(∂L/∂g_j)²] at g_j = 1.

    Molchanov et al. 2019. The gate multiplies what weights take in of the unit, at all of its uses together, so that
    √s_j is |ΔL| where the loss is linear in it. ``per="batch"`` squares the gradient of a batch's mean loss (the
    published code's method 22), ``per="example"`` that of each example (method 23): with opposite signs in a batch
    these differ. ``per="change"`` is the mean over batches of |∂L/∂g_j| itself, |γ ∂L/∂γ + β ∂L/∂β| where a batch norm
    makes the unit (Shen et al. 2022, HALP): an amount of loss, which adds up over units. Scores are not normalised by
    layer.

    Raises:
        InputError: ``per`` is another word, or no weight takes some units in.

    Example:
        >>> from topiarist.plan import Units
        >>> gates = {"batch": torch.tensor([0.0, 4.0]), "example": torch.tensor([1.0, 4.0])}
        >>> Taylor(per="example")(Slices(Units("fc", 2, ()), (), {"gate gradients": gates}))
        tensor([1., 4.])
    """

    per: str = "batch"
    needs: ClassVar[frozenset[str]] = frozenset({"gate gradients"})
    is_comparable: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.per not in ("batch", "example", "change"):
            raise InputError(f"per is 'batch', 'example' or 'change', got {self.per!r}")

    def __call__(self, slices: Slices) -> Tensor:
        found = moment(slices, self.per)
        return found.clone()


def moment(slices: Slices, which: str) -> Tensor:
    """One of the moments of the gradients of gates: (num units,).

    Raises:
        InputError: these units have it not.
    """
    found: dict[str, Tensor] = slices.stats["gate gradients"]
    if which not in found:
        raise InputError(
            f"no weight takes the units of {slices.units.name!r} in, so gates there are known by batch only; "
            f"try saliency='taylor', or keep={slices.units.layer!r}"
        )
    return found[which]


@dataclass(frozen=True)
class TaylorWeight:
    """The same from weights and their gradients, which every unit has.

    Without cross terms s_j = Σ_m Σ_i E_B[(w^m_ji g^m_ji)²]; with ``cross`` s_j = (Σ_m Σ_i w^m_ji E_B[g^m_ji])², the
    square of the change when all weights of the unit shrink together, to first order (Molchanov et al. 2019, eq. 8 to
    10). E_B is over batches.

    Example:
        >>> from topiarist.plan import Units
        >>> weights, gradients = torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, -2.0]])
        >>> TaylorWeight(cross=True)(Slices(Units("fc", 1, ()), (weights,), {"gradients": (gradients,)}))
        tensor([0.], dtype=torch.float64)
    """

    cross: bool = False

    @property
    def needs(self) -> frozenset[str]:
        """Gradients, or their squares."""
        return frozenset({"gradients" if self.cross else "squared gradients"})

    def __call__(self, slices: Slices) -> Tensor:
        total = torch.zeros(slices.units.num, dtype=torch.float64)
        if not slices.weights:
            return total
        (need,) = self.needs
        for weight, found in zip(slices.weights, slices.stats[need], strict=True):
            w = weight.double()
            total = total.to(w.device) + ((w if self.cross else w.square()) * found.double()).sum(1)
        return total.square() if self.cross else total
