"""A target met in the mean: an augmented Lagrangian whose multipliers ascend."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from topiarist.errors import InputError


class AugmentedLagrangian(nn.Module):
    """λ₁ (ŝ − t_k) + λ₂ (ŝ − t_k)², t_k = t · min(1, k / warm_up): min over the model, max over λ (Wang et al. 2020).

    Add it to the loss; λ₁ and λ₂ start at 0 and are *ascended* by an optimizer of their own, with ``maximize=True``
    and no weight decay. A target that warms up too fast kills small layers.

    Args:
        target: t, the fraction removed that is wanted, or whatever ŝ measures.
        warm_up: calls until the whole target is asked for.

    Raises:
        InputError: the target lies outside [0, 1], or the warm-up is below 0.

    Example:
        >>> lagrangian = AugmentedLagrangian(target=0.5)
        >>> ascent = torch.optim.SGD(lagrangian.parameters(), lr=1.0, maximize=True)
        >>> lagrangian(torch.tensor(0.1)).backward()
        >>> ascent.step()
        >>> [round(float(value.detach()), 2) for value in lagrangian.parameters()]
        [-0.4, 0.16]
    """

    num_calls: Tensor

    def __init__(self, target: float, *, warm_up: int = 0) -> None:
        super().__init__()
        if not 0 <= target <= 1 or warm_up < 0:
            raise InputError(f"a target lies in [0, 1] and a warm-up is 0 or more, got {target!r} and {warm_up!r}")
        self.target, self.warm_up = target, warm_up
        self.linear, self.quadratic = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))
        self.register_buffer("num_calls", torch.zeros((), dtype=torch.long))

    @property
    def target_now(self) -> float:
        """t_k."""
        return self.target * min(1.0, int(self.num_calls) / self.warm_up) if self.warm_up else self.target

    def forward(self, found: Tensor) -> Tensor:
        self.num_calls += 1
        gap = found - self.target_now
        return self.linear * gap + self.quadratic * gap.square()
