"""HALP: of all ways to be fast enough, the one that keeps the most importance (Shen et al. 2022)."""

from __future__ import annotations

from typing import Any

from torch import nn

from topiarist.allocation import Knapsack
from topiarist.methods.base import method
from topiarist.plan import Budget
from topiarist.pruning import PruneResult, prune
from topiarist.saliency import Taylor

_COSTS = {"compression": "params", "sparsity": "units"}


@method(
    paper="Shen, Yin, Molchanov, Mao, Liu, Alvarez 2022, Structural pruning via latency-saliency knapsack",
    structure="channel",
    needs=("data", "gradients", "training"),
    headline="ResNet-50 on ImageNet at 1.957 GFLOPs: 76.47 top-1, 1674 images a second on a Titan V (authors' table)",
)
def halp(
    model: nn.Module,
    example_inputs: Any,
    *,
    budget: Budget,
    group: int | None = None,
    steps: int = 1,
    recover: Any = "fine-tune",
    **options: Any,
) -> PruneResult:
    """Keep the channels of the greatest summed |∂L/∂gate| that fit in the budget: a knapsack over measured latency.

    With ``Budget(latency_ms=…)`` the cost of every width of every layer is timed on the machine; with another unit it
    is that unit's. ``group`` channels go at a time; more ``steps`` approach the budget in equal parts with ``recover``
    after each (the paper: 30). Other options are those of `topiarist.prune`.
    """
    spread = Knapsack(_COSTS.get(budget.unit, budget.unit), group)
    told = {"structure": "channel", "saliency": Taylor(per="change"), "schedule": "linear", **options}
    return prune(model, example_inputs, allocation=spread, budget=budget, steps=steps, recover=recover, **told)
