"""Beta-Bernoulli gates: a posterior over how likely a unit is needed."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from topiarist.errors import InputError
from topiarist.mask.gates.base import Gate

_EULER = 0.5772156649015329
_EDGE = 1e-6  # as for every logarithm of a uniform variable
_TEMPERATURE = 0.1
_CLOSED = 1e-3  # a mean below this is none


class BetaBernoulli(Gate):
    """z ~ Bernoulli(π), q(π) = Kumaraswamy(a, b) against the prior Beta(α, 1) (Lee et al. 2018; Madaan et al. 2020).

    a = softplus(max(a_uc, −10)), b = softplus(clip(b_uc, −10, 50)); π = (1 − u^(1/b))^(1/a); z is relaxed to
    σ((logit u′ + logit π) / 0.1), one draw a forward pass (the authors draw one an example). Without noise z is
    E[π] = b Γ(1 + 1/a) Γ(b) / Γ(1 + 1/a + b), and 0 below 0.001, which also stands for P(z ≠ 0).
    ``penalty`` is KL(q ‖ prior) = Σ (1 − α/a)(−γ_E − ψ(b) − 1/b) + log(ab/α) − (b − 1)/b: divide it by the number
    of training examples, or it closes everything.

    Args:
        num: how many units.
        a: a_uc at first; the authors take −1 for LeNet and 2 for VGG.
        b: b_uc at first.
        prior: α.

    Raises:
        InputError: a number is not finite, or α ≤ 0.

    Example:
        >>> gate = BetaBernoulli(1)
        >>> round(float(gate.expected_l0()[0].detach()), 4), round(float(gate.penalty().detach()), 3)
        (0.2385, 7.05)
    """

    def __init__(self, num: int, *, a: float = -1.0, b: float = 0.5413, prior: float = 1e-4) -> None:
        super().__init__()
        if not (math.isfinite(a) and math.isfinite(b) and 0 < prior < math.inf):
            raise InputError(f"needs finite a and b and a prior above 0, got {a!r}, {b!r}, {prior!r}")
        self.prior = prior
        self.a_uc, self.b_uc = nn.Parameter(torch.full((num,), float(a))), nn.Parameter(torch.full((num,), float(b)))

    def _shape(self) -> tuple[Tensor, Tensor]:
        return softplus(self.a_uc.clamp(min=-10)), softplus(self.b_uc.clamp(-10, 50))

    def sample(self) -> Tensor:
        """z for one forward pass."""
        a, b = self._shape()
        u, other = (torch.rand_like(a).clamp(_EDGE, 1 - _EDGE) for _ in range(2))
        pi = ((1 - u ** (1 / b)).clamp(min=_EDGE) ** (1 / a)).clamp(_EDGE, 1 - _EDGE)
        return torch.sigmoid((torch.logit(other) + torch.logit(pi)) / _TEMPERATURE)

    def expected_l0(self) -> Tensor:
        """E[π] of each unit."""
        a, b = self._shape()
        logarithm = torch.lgamma(1 + 1 / a) + torch.lgamma(b) - torch.lgamma(1 + 1 / a + b)
        return b * logarithm.exp()

    @torch.no_grad()
    def deterministic(self) -> Tensor:
        """E[π], and 0 below 0.001."""
        mean = self.expected_l0()
        return mean * (mean >= _CLOSED)

    def penalty(self) -> Tensor:
        """KL(q ‖ prior), a scalar."""
        a, b = self._shape()
        first = (1 - self.prior / a) * (-_EULER - torch.digamma(b) - 1 / b)
        return (first + torch.log(a * b / self.prior) - (b - 1) / b).sum()
