"""Gradient magnitude pruning: weights of small |w · ∂L/∂w| go (the ``…MagGrad`` baselines of Blalock et al. 2020)."""

from __future__ import annotations

from typing import Any

from torch import nn

from topiarist.errors import InputError, nearest
from topiarist.methods.base import method
from topiarist.pruning import PruneResult, prune

SCOPES = {"global": "global", "layer": "uniform"}


@method(
    paper="Blalock, Gonzalez Ortiz, Frankle, Guttag 2020, What is the state of neural network pruning? (baselines)",
    structure="weight",
    needs=("data", "gradients"),
    headline="ResNet-18 on ImageNet at 8×: 60.4 (global) and 58.2 (layerwise) top-1, magnitude 63.9 and 63.0",
)
def gradient_magnitude(
    model: nn.Module, example_inputs: Any, *, scope: str = "global", recover: Any = "fine-tune", **options: Any
) -> PruneResult:
    """Remove the weights of smallest |w · g|, of all layers together or of each alone; then train on.

    g is the mean gradient of the loss over ``data`` (the paper takes one batch). ``scope`` is ``"global"`` or
    ``"layer"``. Other options are those of `topiarist.prune`.

    Raises:
        InputError: the scope is not known, or data or loss are missing.
    """
    if scope not in SCOPES:
        raise InputError(f"no scope is called {scope!r} ({nearest(scope, SCOPES)})")
    allocation = SCOPES[scope]
    return prune(
        model,
        example_inputs,
        structure="weight",
        saliency="gradient",
        allocation=allocation,
        recover=recover,
        **options,
    )
