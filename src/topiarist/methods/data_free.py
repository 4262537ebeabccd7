"""Data-free parameter pruning: of neurons alike one goes and the other takes over (Srinivas and Babu 2015)."""

from __future__ import annotations

from typing import Any

from torch import nn

from topiarist.methods.base import method
from topiarist.pruning import PruneResult, prune
from topiarist.saliency import Similar


@method(
    paper="Srinivas, Babu 2015, Data-free parameter pruning for deep neural networks, arXiv:1507.06149",
    structure="channel",
    headline="up to 85 % of the parameters of an MNIST network and 35 % of AlexNet, without data or training",
)
def data_free(
    model: nn.Module, example_inputs: Any, *, normalize: bool = True, recover: Any = "none", **options: Any
) -> PruneResult:
    """Remove the neurons that others are most like, layer after layer; what read them reads those others.

    ``normalize`` compares directions, so that scaled copies before a rectifier count as alike; with a norm between the
    units and what reads them say ``normalize=False``. Neither data nor training. Every layer loses the fraction that
    meets ``budget``, unless ``allocation`` says otherwise. Other options are those of `topiarist.prune`.

    Example:
        >>> import torch, topiarist
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> data_free(net, torch.zeros(1, 4), budget=topiarist.Budget(sparsity=0.5)).model[0].out_features
        4
    """
    return prune(
        model,
        example_inputs,
        structure="channel",
        saliency=Similar(normalize),
        recover=recover,
        sequential=True,
        **{"allocation": "uniform", **options},
    )
