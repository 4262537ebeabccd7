"""RigL and SET: sparse from the first step, with connections that move while the network learns (Evci et al. 2020)."""

from __future__ import annotations

from typing import Any

from torch import nn

from topiarist.errors import InputError
from topiarist.mask.regrow import Grow
from topiarist.methods.base import method
from topiarist.methods.training import untrained
from topiarist.pruning import PruneResult, prune
from topiarist.recover import Checkpoints, Regrow, TrainingRecipe
from topiarist.saliency import Random


@method(
    paper="Evci, Gale, Menick, Castro, Elsen 2020, Rigging the lottery: making all tickets winners; Mocanu et al. "
    "2018, Scalable training of artificial neural networks with adaptive sparse connectivity",
    structure="weight",
    needs=("data", "gradients", "training"),
    when="during",
    headline="ResNet-50 on ImageNet, ERK, sparsity 0.9: 73.07 top-1 (76.42 with five times the training), dense 76.8",
    untrained=True,
)
def rigl(
    model: nn.Module,
    example_inputs: Any,
    *,
    growth: Grow = "gradient",
    every: int = 100,
    fraction: float = 0.3,
    until: float = 0.75,
    seed: int = 0,
    recipe: TrainingRecipe | None = None,
    checkpoints: Checkpoints | None = None,
    **options: Any,
) -> PruneResult:
    """Start from a random sparse network of Erdős–Rényi densities; while it trains, small weights go and others grow.

    ``growth="gradient"`` grows where the gradient is largest, ``"random"`` anywhere (SET). Every ``every`` steps of the
    first part ``until`` of the training by ``recipe``, f(t) = ``fraction``/2 · (1 + cos πt/T_end) of each layer's
    weights are exchanged. ``model`` is the untrained network, or the trained one where ``checkpoints`` hold step 0.
    Other options are those of `topiarist.prune`.

    Raises:
        InputError: there is no recipe, data or loss.
    """
    if recipe is None:
        raise InputError("sparse training needs recipe=TrainingRecipe(…), how the network is trained")
    training = Regrow(recipe, growth, every, fraction, until, seed)
    told = {"allocation": "erk", **options, "structure": "weight", "saliency": Random(seed), "recover": training}
    return prune(untrained(model, checkpoints), example_inputs, recipe=recipe, **told)
