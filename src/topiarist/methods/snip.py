"""SNIP: before training, the connections that the loss feels least go, in one shot (Lee, Ajanthan, Torr 2019)."""

from __future__ import annotations

from typing import Any

from torch import nn

from topiarist.methods.base import method
from topiarist.methods.training import prune_untrained
from topiarist.pruning import PruneResult


@method(
    paper="Lee, Ajanthan, Torr 2019, SNIP: Single-shot network pruning based on connection sensitivity",
    structure="weight",
    needs=("data", "gradients"),
    when="before",
    headline="VGG-D on CIFAR-10 at sparsity 0.95: error 6.76 → 7.09 percentage points; VGG-like at 0.97: 8.26 → 8.00",
    untrained=True,
)
def snip(model: nn.Module, example_inputs: Any, **options: Any) -> PruneResult:
    """Before training, remove the weights of smallest |w · ∂L/∂w|, all layers together; then train what is left.

    ``model`` is the untrained network, or the trained one where ``checkpoints`` hold step 0, which is gone back to.
    The gradient is the mean over ``data``; ``recipe`` is the training after the cut. Other options are those of
    `topiarist.prune`; with ``steps`` and ``schedule="exponential"`` it is iterative, and layers collapse later.

    Example:
        >>> import torch, topiarist
        >>> net, x, y = nn.Linear(2, 1, bias=False), torch.tensor([[1.0, 10.0]]), torch.zeros(1, 1)
        >>> with torch.no_grad():
        ...     _ = net.weight.copy_(torch.tensor([[2.0, 0.5]]))
        >>> result = snip(net, x, data=[(x, y)], loss=nn.functional.mse_loss, budget=topiarist.Budget(sparsity=0.5))
        >>> result.plan.removed["weight"].tolist()  # |w · g| is 2 · 14 and 0.5 · 140
        [True, False]
    """
    return prune_untrained(model, example_inputs, saliency="snip", **{"allocation": "global", **options})
