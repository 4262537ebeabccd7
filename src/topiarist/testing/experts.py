"""The oracle for cuts of experts: the whole model, of which the router never chooses those that go.

Models take, beside their inputs, a function of the router's outputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def never_choosing(gone: Tensor) -> Callable[[Tensor], Tensor]:
    """Of the router's outputs, (..., experts), those with experts that are never chosen and weigh nothing.

    Example:
        >>> never_choosing(torch.tensor([False, True]))(torch.zeros(1, 2))
        tensor([[0., -inf]])
    """
    return lambda logits: logits.masked_fill(gone, -torch.inf)


def gap(small: nn.Module, model: nn.Module, gone: Tensor, x: Tensor) -> float:
    """The largest difference between what is left and the oracle, relative to the oracle's largest output."""
    with torch.no_grad():
        expected = model(x, never_choosing(gone))
        return float((small(x) - expected).abs().max() / expected.abs().max())
