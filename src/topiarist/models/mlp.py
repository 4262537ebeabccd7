"""A multilayer perceptron of any depth (Rumelhart, Hinton, Williams 1986), the network of the first pruning papers."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from topiarist.errors import InputError


class MLP(nn.Module):
    """Linear layers with ReLU between them: ``MLP(784, 300, 100, 10)`` takes (batch, …) whose rest has 784 entries.

    Raises:
        InputError: fewer than two sizes, or a size below 1.

    Example:
        >>> import torch
        >>> MLP(12, 5, 3)(torch.zeros(2, 3, 2, 2)).shape
        torch.Size([2, 3])
    """

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        if len(sizes) < 2 or min(sizes) < 1:
            raise InputError(f"an MLP needs two or more positive sizes, got {sizes}; try MLP(784, 300, 100, 10)")
        layers: list[nn.Module] = []
        for num_in, num_out in pairwise(sizes):
            layers += [nn.Linear(num_in, num_out), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """(batch, …) → (batch, out)."""
        out: Tensor = self.layers(x.flatten(1))
        return out
