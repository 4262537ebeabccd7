"""Minitron: widths shrink alike in all blocks by activity, and distillation heals (Muralidharan et al. 2024)."""

from __future__ import annotations

from typing import Any

from torch import nn

from topiarist.methods.base import method
from topiarist.pruning import PruneResult, prune


@method(
    paper="Muralidharan, Sreenivas, Joshi, Chochowski, Patwary, Shoeybi, Catanzaro, Kautz, Molchanov 2024, Compact "
    "language models via pruning and knowledge distillation",
    structure="width",
    needs=("data", "training"),
    headline="15B → 8B → 4B with up to 40× fewer training tokens a model, MMLU up to 16 % above training from scratch",
)
def minitron(
    model: nn.Module,
    example_inputs: Any,
    *,
    structure: Any = "width",
    uniform: str | None = None,
    recover: Any = "distil",
    **options: Any,
) -> PruneResult:
    """Remove the least active heads, hidden channels and channels of the stream; then distil from the whole model.

    Activity is the mean magnitude that the next layers are multiplied by, forward only. Every axis loses the same
    fraction; ``uniform`` names the attribute with the config that the model is built from, ``"config"`` unless given
    where there is one, so that sizes are tied across layers and the config describes what is left. Other options are
    those of `topiarist.prune`.
    """
    if uniform is None and hasattr(model, "from_pretrained"):
        uniform = "config"
    told = {"saliency": "activation", "allocation": "uniform", **options}
    return prune(model, example_inputs, structure=structure, uniform=uniform, recover=recover, **told)
