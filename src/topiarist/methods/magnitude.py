"""Magnitude pruning: small weights go, step by step, and the rest is trained on (Han et al. 2015)."""

from __future__ import annotations

from typing import Any

from torch import nn

from topiarist.errors import InputError, nearest
from topiarist.methods.base import method
from topiarist.pruning import PruneResult, prune

SCOPES = {"global": "global", "layer": "uniform", "sensitivity": "sensitivity"}


@method(
    paper="Han, Pool, Tran, Dally 2015, Learning both weights and connections for efficient neural networks",
    structure="weight",
    needs=("data", "training"),
    headline="LeNet-300-100 12× smaller, 1.64 → 1.59 % error; AlexNet 9× smaller at equal accuracy",
)
def magnitude(
    model: nn.Module, example_inputs: Any, *, scope: str = "global", recover: Any = "fine-tune", **options: Any
) -> PruneResult:
    """Remove the weights of smallest |w|, of all layers together, of each alone, or by sensitivity; then train on.

    ``scope`` is ``"global"``, ``"layer"`` or ``"sensitivity"`` (equal loss); ``recover`` is what follows each cut:
    ``"fine-tune"`` (the last weights), ``"rewind"`` (earlier ones) or ``"reinitialize"`` (fresh ones). Other options
    are those of `topiarist.prune`; ``schedule="constant-fraction"`` makes it iterative.

    Raises:
        InputError: the scope is not known.

    Example:
        >>> import torch, topiarist
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> result = magnitude(net, torch.zeros(1, 4), budget=topiarist.Budget(sparsity=0.5), recover="none")
        >>> result.plan.num_removed
        24
    """
    if scope not in SCOPES:
        raise InputError(f"no scope is called {scope!r} ({nearest(scope, SCOPES)})")
    allocation = SCOPES[scope]
    return prune(
        model, example_inputs, structure="weight", saliency="l2", allocation=allocation, recover=recover, **options
    )
