"""No training: channels go in one shot, and least squares on unlabelled data repair what can be repaired."""

from __future__ import annotations

from typing import Any

from torch import nn

from topiarist.methods.base import method
from topiarist.pruning import PruneResult, prune


@method(
    paper="ours: asymmetric least squares (He, Zhang, Sun 2017), compensation (An et al. 2024) and recalibration of "
    "batch norms, whichever comes closest to the dense model",
    structure="inner",
    needs=("data",),
    headline="none: a composition of this library; figures in bench/experiments/no_training.md",
)
def no_training(
    model: nn.Module, example_inputs: Any, *, structure: Any = "inner", saliency: Any = "l2", **options: Any
) -> PruneResult:
    """Remove heads and channels in one shot and refit every layer behind to the dense model, without any gradient.

    ``data`` are batches of inputs, labels are not looked at; a thousand samples are enough. Each axis loses the same
    fraction. What this cannot repair, ``recover="distil"`` or ``"fine-tune"`` of another method may. Other options are
    those of `topiarist.prune`.
    """
    told = {"allocation": "uniform", "recover": "no-training", **options}
    return prune(model, example_inputs, structure=structure, saliency=saliency, **told)
