"""Network Trimming: units that are zero for nearly every input go, and the rest is trained on, again and again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from topiarist.allocation import Outliers
from topiarist.methods.base import method
from topiarist.methods.stages import tolerance
from topiarist.plan import Budget
from topiarist.planning import Evaluate
from topiarist.pruning import PruneResult, prune
from topiarist.recover.train import Loss
from topiarist.saliency import APoZ


@method(
    paper="Hu, Peng, Tai, Tang 2016, Network trimming: a data-driven neuron pruning approach towards efficient deep "
    "architectures, arXiv:1607.03250",
    structure="channel",
    needs=("data", "training"),
    headline="VGG-16 on ImageNet 2.70× smaller: 70.17 top-1 after more training, 68.36 before",
)
def network_trimming(
    model: nn.Module,
    example_inputs: Any,
    *,
    deviations: float = 1.0,
    rounds: int = 3,
    drop: float = 0.02,
    threshold: float = 0.0,
    recover: Any = "fine-tune",
    budget: Budget | None = None,
    judge: Evaluate | None = None,
    evaluate: Evaluate | None = None,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    **options: Any,
) -> PruneResult:
    """Remove the units whose average percentage of zeros lies so many deviations above their layer's; train; again.

    After each of at most ``rounds`` rounds the accuracy must be the model's own less ``drop``, a fraction of all
    examples: a round that does not recover it is undone and ends the run. ``judge`` finds that accuracy, on ``data``
    where it is not given: what decides should not be the test set. With a ``budget`` the rounds are equal steps
    towards it instead, by one ranking. ``threshold`` is the magnitude that counts as zero; ``keep`` says what is not
    trimmed. Other options are those of `topiarist.prune`.

    Raises:
        InputError: nothing says how the accuracy is found.
    """
    evaluate, accept = tolerance(model, drop, judge, evaluate, data, loss)
    amounts = {"allocation": Outliers(deviations)} if budget is None else {"allocation": "global:none"}
    return prune(
        model,
        example_inputs,
        structure="channel",
        saliency=APoZ(threshold),
        recover=recover,
        budget=budget,
        evaluate=evaluate,
        accept=accept,
        data=data,
        loss=loss,
        **{**amounts, "schedule": "linear", "steps": rounds, **options},
    )
