"""GraSP: before training, the weights go whose removal takes least from the flow of gradients (Wang et al. 2020)."""

from __future__ import annotations

from typing import Any

from torch import nn

from topiarist.methods.base import method
from topiarist.methods.training import prune_untrained
from topiarist.pruning import PruneResult
from topiarist.saliency import GraSP


@method(
    paper="Wang, Zhang, Grosse 2020, Picking winning tickets before training by preserving gradient flow",
    structure="weight",
    needs=("data", "gradients"),
    when="before",
    headline="VGG-19 on CIFAR-10 at sparsity 0.98: 92.19 top-1, SNIP 92.05, dense 94.23 (as quoted; not checked)",
    untrained=True,
)
def grasp(model: nn.Module, example_inputs: Any, *, temperature: float = 200.0, **options: Any) -> PruneResult:
    """Before training, remove the weights of lowest θ ⊙ Hg, whose removal raises ‖∂L/∂θ‖ most; then train the rest.

    H and g are those of the loss with outputs divided by ``temperature``, the mean over ``data``. ``model``,
    ``checkpoints`` and ``recipe`` are as for `snip`; other options are those of `topiarist.prune`.
    """
    told = {"allocation": "global", **options}
    return prune_untrained(model, example_inputs, saliency=GraSP(temperature), **told)
