"""FLAP: heads and hidden channels that hardly fluctuate go, and their means move into biases (An et al. 2024)."""

from __future__ import annotations

from typing import Any

from torch import nn

from topiarist.methods.base import method
from topiarist.pruning import PruneResult, prune
from topiarist.saliency import Flap


@method(
    paper="An, Zhao, Yu, Tang, Wang 2024, Fluctuation-based adaptive structured pruning for large language models",
    structure="inner",
    needs=("data",),
    headline="LLaMA-7B, a fifth of the parameters: perplexity 14.62 on WikiText2 (as quoted; not checked)",
)
def flap(
    model: nn.Module,
    example_inputs: Any,
    *,
    metric: str = "wifv",
    structure: Any = "inner",
    recover: Any = "compensate",
    **options: Any,
) -> PruneResult:
    """Remove the heads and hidden channels whose fluctuation Var[x_j] · ‖w_j‖² is lowest; biases take their means over.

    Metrics are standardised within each consumer and compared in one ranking of all layers, cut where the budget is
    met, so that heads and channels cost what they cost. The residual stream stays whole. No labels, no gradients, no
    training. Other options are those of `topiarist.prune`.
    """
    told = {"allocation": "global", **options}
    return prune(model, example_inputs, structure=structure, saliency=Flap(metric), recover=recover, **told)
