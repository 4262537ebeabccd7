"""Scratch: the control that every pruning is measured by, the smaller architecture trained anew (Liu et al. 2019)."""

from __future__ import annotations

from typing import Any

from torch import nn

from topiarist.methods.base import method
from topiarist.pruning import PruneResult, prune
from topiarist.recover import Scratch


@method(
    paper="Liu, Sun, Zhou, Huang, Darrell 2019, Rethinking the value of network pruning, arXiv:1810.05270",
    structure="channel",
    needs=("data", "training"),
    headline="ResNet-56-B on CIFAR-10: scratch-B 93.05, scratch-E 92.54, fine-tuned 92.67",
)
def scratch(
    model: nn.Module,
    example_inputs: Any,
    *,
    equal: str = "epochs",
    cap: float | None = None,
    seed: int = 0,
    structure: Any = "channel",
    **options: Any,
) -> PruneResult:
    """Draw fresh weights for the architecture that a pruning leaves, and train it as the dense one was.

    ``equal="epochs"`` is scratch-E, ``"compute"`` scratch-B: as many epochs as the dense training's
    multiply–accumulates pay for, at most ``cap`` times. ``recipe`` is that of the dense training. What goes is said by
    the other options, those of `topiarist.prune`; of channels, by default, the same fraction of each layer's filters,
    those of small L1.
    """
    chosen = {"saliency": "filter-l1" if structure == "channel" else "l2", "allocation": "uniform"}
    return prune(
        model,
        example_inputs,
        structure=structure,
        recover=Scratch(equal, cap, seed),
        **{**chosen, **options},
    )
