"""Optimal Brain Surgeon: weights go one after the other, and all others adapt at once (Hassibi and Stork 1993)."""

from __future__ import annotations

from typing import Any

from torch import nn

from topiarist.methods.base import method
from topiarist.pruning import PruneResult, prune
from topiarist.saliency import OBS


@method(
    paper="Hassibi, Stork 1993, Second order derivatives for network pruning: optimal brain surgeon",
    structure="weight",
    needs=("data", "gradients"),
    headline="MONK's problems with 90, 76 and 62 % fewer weights than training with weight decay (from memory)",
)
def optimal_brain_surgeon(
    model: nn.Module,
    example_inputs: Any,
    *,
    damping: float = 0.01,
    relative: bool = True,
    whole: int = 5000,
    steps: int = 20,
    recover: Any = "none",
    **options: Any,
) -> PruneResult:
    """Remove the weights of smallest w² / 2[H⁻¹], change all others as the quadratic model says, in ``steps``.

    H is collected anew before each step. ``damping`` (of the mean diagonal, or absolute with ``relative=False``) and
    ``whole``, the largest network whose H is one matrix, are those of `topiarist.saliency.OBS`. No training. Other
    options are those of `topiarist.prune`.
    """
    stepwise: dict[str, Any] = {} if options.get("budget") is None else {"schedule": "linear", "steps": steps}
    return prune(
        model,
        example_inputs,
        structure="weight",
        saliency=OBS(damping, relative, whole),
        recover=recover,
        **{"allocation": "global", **stepwise, **options},
    )
