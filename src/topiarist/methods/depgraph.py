"""DepGraph: groups of coupled channels by their norm, after a training that makes them sparse (Fang et al. 2023)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from topiarist import recover as recoveries
from topiarist.data import count_batches
from topiarist.mask import ImportanceL2, units_in
from topiarist.methods.base import method
from topiarist.methods.training import train_first, with_training
from topiarist.planning import Loss
from topiarist.pruning import OnStep, PruneResult, prune
from topiarist.recover import AtEnd, TrainingRecipe
from topiarist.recover.train import Row


@method(
    paper="Fang, Ma, Song, Mi, Wang 2023, DepGraph: towards any structural pruning",
    structure="channel",
    needs=("data", "gradients", "training"),
    when="during",
    headline="ResNet-56 on CIFAR-10 at a speed-up of 2.13: 93.77 top-1, dense 93.53; at 2.57: 93.64 (authors' table)",
)
def depgraph(
    model: nn.Module,
    example_inputs: Any,
    *,
    strength: float = 5e-4,
    steps: int = 10,
    structure: Any = "channel",
    recover: Any = "fine-tune",
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    recipe: TrainingRecipe | None = None,
    keep: Sequence[str] = (),
    on_step: OnStep | None = None,
    **options: Any,
) -> PruneResult:
    """Train by ``recipe`` with an L2 pressure that grows as the importance of a group falls, then remove groups.

    A group is all that shares an axis; the importance I_k of its unit k is the mean squared norm over its members. The
    pressure on unit k is ``strength`` · 2^(4 (I_max − I_k) / (I_max − I_min)), taken anew each epoch; without a recipe,
    or with a strength of 0, there is no training first. Then the lowest units go in ``steps`` steps to the budget,
    groups compared by their mean, and ``recover`` follows the last. Other options are those of `topiarist.prune`.

    Raises:
        InputError: it is to train, and there is no data or no loss.
    """
    work, rows = copy.deepcopy(model), list[Row]()
    if strength and recipe is not None:
        _, units = units_in(work, example_inputs, structure, keep)
        penalty = ImportanceL2(work, units, strength)
        num_batches = 1 if data is None else count_batches(data)

        def after_step(row: Mapping[str, float]) -> None:
            if (row["step"] + 1) % num_batches == 0:
                penalty.update(work)

        rows = train_first(work, data, loss, recipe, on_step, after_step, penalty)
    told = {"saliency": "group-l2", "allocation": "global", "schedule": "linear", "recipe": recipe, **options}
    at_end = AtEnd(recoveries.resolve(recover))
    told.update(structure=structure, steps=steps, recover=at_end, data=data, loss=loss, keep=keep, on_step=on_step)
    return with_training(prune(work, example_inputs, **told), rows)
