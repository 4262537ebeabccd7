"""Scalar gates: a factor in [0, 1], without noise."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from topiarist.mask.gates.base import Gate


class ScalarGate(Gate):
    """z = g, from 1, brought back to [0, 1] after every step (Pruning from Scratch, Wang et al. 2020).

    |g| stands for P(z ≠ 0). The paper freezes the weights, leaves norms in training mode, and minimises
    the loss + λ (mean |g| − r)² over the gates alone: ``(gates.density() - r) ** 2``.

    Example:
        >>> gate = ScalarGate(2)
        >>> _ = nn.init.constant_(gate.value, 1.5)
        >>> gate.project()
        >>> gate.deterministic()
        tensor([1., 1.])
    """

    def __init__(self, num: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.ones(num))

    def sample(self) -> Tensor:
        """g."""
        return self.value

    def expected_l0(self) -> Tensor:
        """|g|."""
        return self.value.abs()

    def deterministic(self) -> Tensor:
        """g, without its gradient."""
        return self.value.detach()

    @torch.no_grad()
    def project(self) -> None:
        """Clamp to [0, 1]."""
        self.value.clamp_(0, 1)
