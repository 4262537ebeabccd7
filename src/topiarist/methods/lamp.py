"""LAMP: magnitude pruning in one ranking of all layers that no scale of a layer decides (Lee et al. 2021)."""

from __future__ import annotations

from typing import Any

from torch import nn

from topiarist.methods.base import method
from topiarist.pruning import PruneResult, prune


@method(
    paper="Lee, Park, Mo, Ahn, Shin 2021, Layer-adaptive sparsity for the magnitude-based pruning",
    structure="weight",
    needs=("data", "training"),
    headline="none given here: the paper's tables were not at hand; best or tied at extreme sparsity is its claim",
)
def lamp(model: nn.Module, example_inputs: Any, *, recover: Any = "fine-tune", **options: Any) -> PruneResult:
    """Remove the weights of smallest w_u² / Σ_{v ≥ u} w_v² in one ranking of all layers; then train on.

    The sum is over what is left of the layer: to first order the distortion of the outputs is least, and a layer that
    is scaled keeps its weights. ``schedule="exponential", steps=20`` is the paper's iterative form. Other options are
    those of `topiarist.prune`.

    Example:
        >>> import torch, topiarist
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> budget = topiarist.Budget(sparsity=0.5)
        >>> lamp(net, torch.zeros(1, 4), recover="none", budget=budget).plan.num_removed
        24
    """
    told = {"structure": "weight", "saliency": "l2", "allocation": "lamp", **options}
    return prune(model, example_inputs, recover=recover, **told)
