"""How many numbers a model has, and how many of them are not zero."""

from __future__ import annotations

import torch
from torch import nn


def num_params(model: nn.Module) -> int:
    """The number of entries of all parameters, tied ones once.

    Example:
        >>> num_params(nn.Linear(3, 2))
        8
    """
    return sum(parameter.numel() for parameter in model.parameters())


def num_nonzero(model: nn.Module) -> int:
    """The number of entries that are not zero, of all parameters, tied ones once.

    Example:
        >>> layer = nn.Linear(3, 2, bias=False)
        >>> with torch.no_grad():
        ...     _ = layer.weight.copy_(torch.tensor([[0.0, 1.0, 2.0], [0.0, 0.0, 3.0]]))
        >>> num_nonzero(layer)
        3
    """
    return sum(int(torch.count_nonzero(parameter)) for parameter in model.parameters())
