"""Hard concrete gates: exactly zero with a probability that has a gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from topiarist.errors import InputError
from topiarist.mask.gates.base import Gate

_EDGE = 1e-6  # u keeps this far from 0 and 1, where its logarithm is infinite


class HardConcrete(Gate):
    """z = clip(s̄, 0, 1), s̄ = s (ζ − γ) + γ, s = σ((log u − log(1 − u) + log α) / β), u ~ U(0, 1) (Louizos et al. 2018).

    P(z ≠ 0) = σ(log α − β log(−γ / ζ)). Without noise z is clip(σ(log α) (ζ − γ) + γ, 0, 1); with
    ``exact_count=True`` (Wang, Wohlwend, Lei 2020, "FLOP") the round(n − E‖z‖₀) smallest are 0 and the others
    σ(0.8 log α / β), so that as many are zero as the expectation says.

    Args:
        num: how many units.
        drop: P(s < ½) at first; log α starts at N(log((1 − drop) / drop), 0.01).
        beta: the temperature, 2/3 in Louizos et al. and 1 in Wang et al.

    Raises:
        InputError: not 0 < drop < 1, β ≤ 0, or not γ < 0 < 1 < ζ.

    Example:
        >>> gate = HardConcrete(3, beta=1.0)
        >>> _ = nn.init.zeros_(gate.log_alpha)
        >>> gate.expected_l0().detach()
        tensor([0.9167, 0.9167, 0.9167])
    """

    def __init__(
        self,
        num: int,
        *,
        drop: float = 0.5,
        beta: float = 2 / 3,
        gamma: float = -0.1,
        zeta: float = 1.1,
        exact_count: bool = False,
    ) -> None:
        super().__init__()
        if not (0 < drop < 1 and beta > 0 and gamma < 0 and zeta > 1):
            raise InputError(f"needs 0 < drop < 1, beta > 0, gamma < 0, zeta > 1: got {drop}, {beta}, {gamma}, {zeta}")
        self.beta, self.gamma, self.zeta, self.exact_count = beta, gamma, zeta, exact_count
        self.log_alpha = nn.Parameter(torch.randn(num) * 0.01 + math.log((1 - drop) / drop))

    def sample(self) -> Tensor:
        """z for one forward pass."""
        u = torch.rand_like(self.log_alpha).clamp(_EDGE, 1 - _EDGE)
        s = torch.sigmoid((u.log() - (1 - u).log() + self.log_alpha) / self.beta)
        return (s * (self.zeta - self.gamma) + self.gamma).clamp(0, 1)

    def expected_l0(self) -> Tensor:
        """P(z ≠ 0) of each unit."""
        return torch.sigmoid(self.log_alpha - self.beta * math.log(-self.gamma / self.zeta))

    @torch.no_grad()
    def deterministic(self) -> Tensor:
        """z without noise."""
        if not self.exact_count:
            stretched = torch.sigmoid(self.log_alpha) * (self.zeta - self.gamma) + self.gamma
            return stretched.clamp(0, 1)
        num = len(self.log_alpha)
        num_zero = round(num - float(self.expected_l0().sum()))
        soft = self.soft()
        return soft.index_fill(0, torch.argsort(soft, stable=True)[:num_zero], 0)

    @torch.no_grad()
    def soft(self) -> Tensor:
        """σ(0.8 log α / β): what ``exact_count`` leaves of those that are not zero."""
        return torch.sigmoid(0.8 * self.log_alpha / self.beta)
