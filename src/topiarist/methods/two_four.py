"""2:4 sparsity: of every four weights in a row two stay, channels in their best order; then training once more."""

from __future__ import annotations

from typing import Any

from torch import nn

from topiarist.methods.base import method
from topiarist.pruning import PruneResult, prune
from topiarist.recover import TrainingRecipe
from topiarist.structure import permute


@method(
    paper="Mishra, Latorre, Pool, Stosic, Stosic, Venkatesh, Yu, Micikevicius 2021, Accelerating sparse deep neural "
    "networks; Pool, Yu 2021, Channel permutations for N:M sparsity",
    structure="2:4",
    needs=("data", "training"),
    headline="ResNet-50 on ImageNet: 76.1 → 76.2 top-1 (as quoted; not checked)",
)
def two_four(
    model: nn.Module,
    example_inputs: Any,
    *,
    structure: str = "2:4",
    order: bool = True,
    recipe: TrainingRecipe | None = None,
    recover: Any = None,
    **options: Any,
) -> PruneResult:
    """Put channels into an order in which n:m keeps the most, keep the n largest of every m, and train once more.

    ``order=False`` leaves channels where they are. The training again is ``recipe`` with its learning rates from the
    beginning, on the weights that stay; without a recipe there is none. Other options are those of `topiarist.prune`.
    """
    if order:
        model = permute(model, example_inputs, structure, keep=options.get("keep", ())).model
    if recover is None:
        recover = "none" if recipe is None else "lr-rewind"
    told = {"saliency": "l2", "allocation": "uniform", **options}
    return prune(model, example_inputs, structure=structure, recipe=recipe, recover=recover, **told)
