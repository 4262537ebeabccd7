"""SynFlow: before training and without data, what carries least of the flow to the outputs goes, step by step."""

from __future__ import annotations

from typing import Any

from torch import nn

from topiarist.methods.base import method
from topiarist.methods.training import prune_untrained
from topiarist.pruning import PruneResult


@method(
    paper="Tanaka, Kunin, Yamins, Ganguli 2020, Pruning neural networks without any data by iteratively conserving "
    "synaptic flow",
    structure="weight",
    when="before",
    headline="VGG-16 on CIFAR-10 at compression 1000: 80.4 top-1, SNIP 76.3, GraSP 70.9, magnitude 10.0 (authors)",
    untrained=True,
)
def synflow(model: nn.Module, example_inputs: Any, *, steps: int = 100, **options: Any) -> PruneResult:
    """Before training, remove the weights of least synaptic flow |θ ⊙ ∂R/∂θ|, a little at a time; then train the rest.

    R = Σ f_|θ|(1): no data is looked at. In ``steps`` the density falls as d^(t/steps), scores are taken anew, and no
    layer is emptied. ``model``, ``checkpoints`` and ``recipe`` are as for `snip`; other options those of
    `topiarist.prune`.

    Example:
        >>> import torch, topiarist
        >>> net = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 2, bias=False))
        >>> result = synflow(net, torch.zeros(1, 4), steps=10, budget=topiarist.Budget(sparsity=0.75))
        >>> result.plan.num_removed, len(result.curve)
        (36, 10)
    """
    told = {"allocation": "global", "schedule": "exponential", **options}
    return prune_untrained(model, example_inputs, saliency="synflow", steps=steps, **told)
