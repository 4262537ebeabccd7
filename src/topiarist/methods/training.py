"""What methods share that prune before a training, or train before they prune."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from topiarist.errors import InputError
from topiarist.planning import Loss
from topiarist.pruning import OnStep, PruneResult, prune
from topiarist.recover import Checkpoints, FineTune, TrainingRecipe, train
from topiarist.recover.at_end import AtEnd
from topiarist.recover.train import Row


def untrained(model: nn.Module, checkpoints: Checkpoints | None) -> nn.Module:
    """A copy of the model with the weights of before its training, where the checkpoints hold them; else the model.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> untrained(model, None) is model
        True
    """
    if checkpoints is None or 0 not in checkpoints.saved:
        return model
    first = copy.deepcopy(model)
    checkpoints.restore(0, first)
    return first


def prune_untrained(
    model: nn.Module,
    example_inputs: Any,
    *,
    recipe: TrainingRecipe | None = None,
    checkpoints: Checkpoints | None = None,
    recover: Any = None,
    **options: Any,
) -> PruneResult:
    """Prune single weights of the untrained model, then train what is left by ``recipe``, where there is one, once.

    ``recover`` is what follows instead, after the last cut. Other options are those of `topiarist.prune`.
    """
    if recover is None:
        recover = "none" if recipe is None else AtEnd(FineTune(recipe))
    first = untrained(model, checkpoints)
    return prune(first, example_inputs, recover=recover, recipe=recipe, **{"structure": "weight", **options})


def train_first(
    model: nn.Module,
    data: Iterable[Any] | None,
    loss: Loss | None,
    recipe: TrainingRecipe,
    on_step: OnStep | None,
    after_step: Callable[[Mapping[str, float]], object] | None = None,
    before_step: Callable[[nn.Module], object] | None = None,
) -> list[Row]:
    """Train ``model`` in place before it is pruned; arguments are those of `topiarist.recover.train`.

    Raises:
        InputError: no data or no loss.
    """
    if data is None or loss is None:
        raise InputError("this method trains: pass data=batches of (inputs, targets) and loss=function")

    def told(row: Mapping[str, float]) -> None:
        if after_step is not None:
            after_step(row)
        if on_step is not None:
            on_step({"pruning_step": 1, "num_pruning_steps": 1, **row})

    return train(model, data, loss, recipe, on_step=told, before_step=before_step)


def with_training(result: PruneResult, rows: Iterable[Row]) -> PruneResult:
    """The result with the rows of a training that came first, as steps of pruning number 0."""
    first = tuple({**row, "step": 0, "batch": row["step"]} for row in rows)
    return replace(result, history=(*first, *result.history))
