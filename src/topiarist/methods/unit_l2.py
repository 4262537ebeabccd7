"""Unit pruning: neurons whose column of weights has a small norm go."""

from __future__ import annotations

from typing import Any

from torch import nn

from topiarist.methods.base import method
from topiarist.pruning import PruneResult, prune
from topiarist.saliency import FilterNorm


@method(
    paper="a baseline without a paper of its own: magnitude pruning of whole columns of a weight matrix",
    structure="channel",
    needs=("data", "training"),
    headline="none; the filters of convolutions are Li et al. 2017, see l1-filters",
)
def unit_l2(
    model: nn.Module, example_inputs: Any, *, direction: str = "in", recover: Any = "fine-tune", **options: Any
) -> PruneResult:
    """Remove the units of each layer whose weights have the smallest ‖w_j‖₂, and train on.

    ``direction`` is ``"in"``, the weights that make a unit, ``"out"``, those that read it, or ``"both"``, the product
    of their norms. Every layer loses the fraction that meets ``budget``, unless ``allocation`` says otherwise. Other
    options are those of `topiarist.prune`.

    Raises:
        InputError: the direction is not known.

    Example:
        >>> import torch, topiarist
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> result = unit_l2(net, torch.zeros(1, 4), budget=topiarist.Budget(sparsity=0.5), recover="none")
        >>> result.model[0].out_features
        4
    """
    return prune(
        model,
        example_inputs,
        structure="channel",
        saliency=FilterNorm(2, direction),
        recover=recover,
        **{"allocation": "uniform", **options},
    )
