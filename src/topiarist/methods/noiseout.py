"""NoiseOut: outputs that learn noise make hidden units alike; of two alike one goes (Babaeizadeh et al. 2016)."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from topiarist.methods.base import method
from topiarist.methods.stages import as_first_step, kept, tolerance, training
from topiarist.planning import Evaluate
from topiarist.pruning import OnStep, PruneResult, prune
from topiarist.recover import FineTune, NoiseOutputs, RecoveryContext, TrainingRecipe
from topiarist.recover.train import Loss
from topiarist.saliency import Correlated


@method(
    paper="Babaeizadeh, Smaragdis, Campbell 2016, NoiseOut: a simple way to prune neural networks, arXiv:1611.06211",
    structure="channel",
    needs=("data", "gradients", "training"),
    when="during",
    headline="LeNet-300-100 and LeNet-5 on MNIST: over 95 % of the parameters go at equal accuracy (from memory)",
)
def noiseout(
    model: nn.Module,
    example_inputs: Any,
    *,
    num_noise: int = 64,
    targets: str = "gaussian",
    rank: str = "correlation",
    drop: float = 0.01,
    steps: int = 10,
    each: TrainingRecipe | None = None,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    recipe: TrainingRecipe | None = None,
    judge: Evaluate | None = None,
    evaluate: Evaluate | None = None,
    folder: str | Path | None = None,
    on_step: OnStep | None = None,
    **options: Any,
) -> PruneResult:
    """Train with noise outputs; absorb the units that others explain best; train on; again, while accuracy comes back.

    ``num_noise`` and ``targets`` are those of `topiarist.recover.NoiseOutputs`, none for 0; ``rank`` is that of
    `topiarist.saliency.Correlated`. ``recipe`` is the first training, ``each`` the one after each of ``steps`` equal
    steps towards ``budget`` (one epoch at 0.01 where not given). A step after which the accuracy is not that of the
    first training less ``drop``, a fraction of all examples, is undone and ends the run; ``judge`` finds it, on
    ``data`` where it is not given. The noise outputs are no part of the result. Other options are those of
    `topiarist.prune`.

    Raises:
        InputError: there is no data, loss or recipe.
    """
    data, loss, recipe = training("noiseout", data, loss, recipe)
    given, told = data, RecoveryContext(data=data, loss=loss, progress=as_first_step(on_step))

    def follows(how: TrainingRecipe) -> FineTune | NoiseOutputs:
        return NoiseOutputs(how, num_noise, targets) if num_noise else FineTune(how)

    def trained() -> nn.Module:
        work = copy.deepcopy(model)
        follows(recipe)(work, told)
        return work

    alike = kept(folder, "alike", lambda: copy.deepcopy(model), trained)
    evaluate, accept = tolerance(alike, drop, judge, evaluate, given, loss)
    return prune(
        alike,
        example_inputs,
        structure="channel",
        saliency=Correlated(rank),
        recover=follows(each or FineTune().recipe),
        steps=steps,
        data=data,
        loss=loss,
        evaluate=evaluate,
        accept=accept,
        recipe=recipe,
        folder=folder,
        on_step=on_step,
        **{"allocation": "uniform", "schedule": "linear", **options},
    )
