"""Optimal Brain Damage: weights whose second-order effect on the loss is small go (LeCun, Denker, Solla 1990)."""

from __future__ import annotations

from typing import Any

from torch import nn

from topiarist.methods.base import method
from topiarist.pruning import PruneResult, prune
from topiarist.saliency import OBD
from topiarist.schedule import ConstantFraction


@method(
    paper="LeCun, Denker, Solla 1990, Optimal brain damage",
    structure="weight",
    needs=("data", "gradients", "training"),
    headline="a digit recogniser with 2578 free parameters made smaller by more than a factor of two",
)
def optimal_brain_damage(
    model: nn.Module,
    example_inputs: Any,
    *,
    fraction: float = 0.1,
    curvature: str = "auto",
    num_probes: int = 8,
    recover: Any = "fine-tune",
    **options: Any,
) -> PruneResult:
    """Remove ``fraction`` of the weights left, those of the smallest ½ h w², train on; and again down to ``budget``.

    h is the diagonal of the Hessian: ``curvature`` and ``num_probes`` are those of `topiarist.saliency.OBD`. Train to a
    minimum first: what the gradient says is left out. Other options are those of `topiarist.prune`.
    """
    steps: dict[str, Any] = {} if options.get("budget") is None else {"schedule": ConstantFraction(fraction)}
    return prune(
        model,
        example_inputs,
        structure="weight",
        saliency=OBD(curvature, num_probes),
        recover=recover,
        **{"allocation": "global", **steps, **options},
    )
