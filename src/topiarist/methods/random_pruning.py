"""Random pruning: the baseline that every criterion has to beat (Blalock et al. 2020)."""

from __future__ import annotations

from typing import Any

from torch import nn

from topiarist.allocation import Smallest
from topiarist.methods.base import method
from topiarist.pruning import PruneResult, prune
from topiarist.saliency import Random


@method(
    paper="Blalock, Gonzalez Ortiz, Frankle, Guttag 2020, What is the state of neural network pruning? (baselines)",
    structure="weight",
    headline="ResNet-56 on CIFAR-10 at 8×: 79.1 top-1, magnitude 91.7",
)
def random_pruning(
    model: nn.Module,
    example_inputs: Any,
    *,
    structure: Any = "weight",
    seed: int = 0,
    n: int | None = None,
    recover: Any = "none",
    **options: Any,
) -> PruneResult:
    """Remove units at random: a fraction of each layer by ``budget``, or ``n`` of them in all.

    Exact numbers go, where the paper keeps each weight by an independent draw. Other options are those of
    `topiarist.prune`.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> random_pruning(net, torch.zeros(1, 4), n=7).plan.num_removed
        7
    """
    amounts = {"allocation": "uniform" if n is None else Smallest(n)}
    return prune(
        model, example_inputs, structure=structure, saliency=Random(seed), recover=recover, **{**amounts, **options}
    )
