"""Methods that prune while the network trains: the training loop, the pruner, and the result of `topiarist.prune`."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from topiarist import recover as recoveries
from topiarist.asked import named_numbers
from topiarist.data.loader import count_batches
from topiarist.errors import InputError
from topiarist.journal import Progress
from topiarist.methods.stages import as_first_step, training
from topiarist.planning import Evaluate
from topiarist.pruner import Pruner
from topiarist.pruning import OnStep, PruneResult, finished
from topiarist.recover import RecoveryContext, TrainingRecipe, train
from topiarist.recover.train import Loss, Row


def while_training(
    method: str,
    model: nn.Module,
    example_inputs: Any,
    *,
    begin: float = 0.0,
    end: float = 1.0,
    every: float = 1.0,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    recipe: TrainingRecipe | None = None,
    recover: Any = "none",
    evaluate: Evaluate | None = None,
    on_step: OnStep | None = None,
    folder: object = None,
    checkpoints: object = None,
    **options: Any,
) -> PruneResult:
    """Train a copy of ``model`` by ``recipe`` and prune it on the way; ``options`` are those of `topiarist.Pruner`.

    Masks move every ``every`` epochs (once, where that is longer) between the parts ``begin`` and ``end`` of the
    training; ``recover`` follows.
    ``curve`` has a row per move. The training is one piece: ``folder`` and ``checkpoints`` keep nothing of it.

    Raises:
        InputError: there is no data, loss or recipe, or the masks would never move.
    """
    del folder, checkpoints
    data, loss, recipe = training(method, data, loss, recipe)
    work, num_batches = copy.deepcopy(model), count_batches(data)
    num_steps = recipe.num_steps(num_batches)
    if num_steps == 0:
        raise InputError(f"{method} prunes while it trains, and the recipe has no step; try epochs=10")
    first, last = int(begin * num_steps), int(end * num_steps)
    times: dict[str, Any] = {"begin": first, "end": last, "every": max(1, min(int(every * num_batches), last - first))}
    pruner = Pruner(work, example_inputs, data=data, loss=loss, **times, **options)
    moves: list[Row] = []
    told = as_first_step(on_step)

    def after_step(row: Mapping[str, float]) -> None:
        if told is not None:
            told(row)
        if (plan := pruner.step()) is not None:
            moves.append({"step": len(moves) + 1, **plan.achieved})

    rows = train(work, data, loss, recipe, on_step=after_step)
    context = RecoveryContext(data=data, loss=loss, plan=pruner.plan, recipe=recipe, dense=model, progress=told)
    rows += recoveries.resolve(recover)(work, context)
    moves[-1].update(named_numbers(evaluate(work)) if evaluate is not None else {})
    curve = tuple({**move, "num_steps": len(moves)} for move in moves)
    if on_step is not None:
        on_step(curve[-1])
    history = tuple({**row, "step": 1, "batch": row["step"]} for row in rows)
    return finished(pruner.planner, work, Progress(pruner.plan, curve, history), example_inputs)
