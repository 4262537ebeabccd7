"""Lottery tickets: magnitude pruning in rounds, each from the weights of an early step (Frankle and Carbin 2019)."""

from __future__ import annotations

from typing import Any

from torch import nn

from topiarist.methods.base import method
from topiarist.pruning import PruneResult, prune
from topiarist.recover import LRRewind, Recovery, WeightRewind
from topiarist.schedule import ConstantFraction


@method(
    paper="Frankle, Carbin 2019, The lottery ticket hypothesis; Renda, Frankle, Carbin 2020, Comparing rewinding and "
    "fine-tuning in neural network pruning",
    structure="weight",
    needs=("data", "training"),
    headline="ResNet-56 on CIFAR-10 at density 0.107, iterative: learning-rate rewinding 93.56, dense 93.46",
)
def lottery_ticket(
    model: nn.Module,
    example_inputs: Any,
    *,
    fraction: float = 0.2,
    rewind_to: float = 0.0,
    rewind: str = "weights",
    **options: Any,
) -> PruneResult:
    """Remove ``fraction`` of the weights left, go back to an early step with those that stay, train; and again.

    ``model`` is the trained network, ``checkpoints`` hold the states of its training and ``recipe`` is how it was
    trained (see `topiarist.recover.Checkpoints`). ``rewind_to`` is the part of the training to go back to, 0 for the
    initial weights; ``rewind="learning rate"`` keeps the last weights and replays the rates alone (Renda et al. 2020).
    """
    recover: Recovery = (
        LRRewind(to_fraction=rewind_to) if rewind == "learning rate" else WeightRewind(to_fraction=rewind_to)
    )
    return prune(
        model,
        example_inputs,
        structure="weight",
        saliency="l2",
        recover=recover,
        **{"allocation": "global", "schedule": ConstantFraction(fraction), **options},
    )
