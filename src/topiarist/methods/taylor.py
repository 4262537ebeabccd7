"""Taylor expansion: units without which the loss changes least to first order go (Molchanov et al. 2016, 2019)."""

from __future__ import annotations

from typing import Any

from torch import nn

from topiarist.allocation import Global
from topiarist.errors import InputError, nearest
from topiarist.methods.base import method
from topiarist.methods.during import while_training
from topiarist.pruning import PruneResult, prune
from topiarist.recover import FineTune, TrainingRecipe
from topiarist.saliency import Taylor, Taylor2016

CRITERIA = {"2016": Taylor2016, "2019": Taylor}
TIMES = ("before", "during", "after")


@method(
    paper="Molchanov, Tyree, Karras, Aila, Kautz 2017, arXiv:1611.06440; Molchanov, Mallya, Tyree, Frosio, Kautz 2019, "
    "Importance estimation for neural network pruning, arXiv:1906.10771",
    structure="channel",
    needs=("data", "gradients", "training"),
    headline="ResNet-50 on ImageNet with 72 % of the gates: 74.50, dense 76.18 (from memory)",
)
def taylor(
    model: nn.Module,
    example_inputs: Any,
    *,
    criterion: str | int = "2019",
    when: str = "after",
    recover: Any = None,
    recipe: TrainingRecipe | None = None,
    **options: Any,
) -> PruneResult:
    """Remove the channels of the lowest first-order change of the loss over all layers, in steps, and train on.

    ``criterion`` is ``"2019"``, E (∂L/∂g)² of a gate on each channel, or ``"2016"``, E |mean of z ∂L/∂z|, divided by
    each layer's norm. ``when`` is ``"after"`` training (``steps``, 10 in equal parts, each followed by ``recover``,
    fine-tuning), ``"during"`` it (masks move in its first four fifths, see `topiarist.Pruner`) or ``"before"``: one cut
    of the fresh network, then the training by ``recipe``. Other options are those of `topiarist.prune`, or of
    `topiarist.Pruner`.

    Raises:
        InputError: no such criterion or time; no data or loss, or, but for ``"after"``, no recipe.
    """
    if str(criterion) not in CRITERIA:
        raise InputError(f"no criterion is called {criterion!r} ({nearest(str(criterion), CRITERIA)})")
    if when not in TIMES:
        raise InputError(f"pruning is before, during or after training, got {when!r} ({nearest(when, TIMES)})")
    parts = {"structure": "channel", "saliency": CRITERIA[str(criterion)](), "recipe": recipe}
    options = {"allocation": Global("none"), **options}
    if when == "during":
        parts["recover"] = recover or "none"
        times = {"schedule": "cubic", "begin": 0.1, "end": 0.8, "every": 0.5}
        return while_training("taylor", model, example_inputs, **parts, **{**times, **options})
    if when == "before":
        if recipe is None:
            raise InputError("taylor before training trains afterwards: pass recipe=TrainingRecipe(epochs=10)")
        return prune(model, example_inputs, **parts, recover=recover or FineTune(recipe), **options)
    stepwise = {"schedule": "linear", "steps": 10} if options.get("budget") is not None else {}
    return prune(model, example_inputs, **parts, recover=recover or "fine-tune", **{**stepwise, **options})
