"""Best of N random masks: cut at random many times, keep the cut that hurts least, train it (Anwar and Sung 2016)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from topiarist import structure as structures
from topiarist.allocation import resolve as allocation_of
from topiarist.errors import InputError
from topiarist.mask.attach import masked
from topiarist.methods.base import method
from topiarist.methods.stages import judge_of
from topiarist.plan import Budget
from topiarist.planning import Evaluate, Planner
from topiarist.pruning import OnStep, PruneResult, prune, sound_planner
from topiarist.recover.train import Loss, Row
from topiarist.saliency import Random


@method(
    paper="Anwar, Sung 2016, Compact deep convolutional neural networks with coarse pruning, arXiv:1610.09639",
    structure="channel",
    needs=("data",),
    headline="over 85 % of the convolutions' weights on CIFAR-10 at under 1 % more errors",
)
def best_of_masks(
    model: nn.Module,
    example_inputs: Any,
    *,
    num: int = 50,
    seed: int = 0,
    structure: Any = "channel",
    allocation: Any = "uniform",
    recover: Any = "fine-tune",
    judge: Evaluate | None = None,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    budget: Budget | None = None,
    keep: Sequence[str] = (),
    on_step: OnStep | None = None,
    **options: Any,
) -> PruneResult:
    """Draw ``num`` masks with exactly the same numbers of units, keep the one of the highest accuracy, and train on.

    ``judge`` finds the accuracy of the masked networks without training, on ``data`` where it is not given: validation
    data, not the test set, and 2000 examples or more. ``curve`` begins with a row per mask, its accuracy ``"judged"``.
    Other options are those of `topiarist.prune`.

    Raises:
        InputError: there is no mask to choose from, or nothing says how the accuracy is found.
    """
    if num < 1:
        raise InputError(f"the best of 1 mask or more, got num={num!r}")
    judge = judge_of(judge, data, loss)
    work, rows = copy.deepcopy(model), []
    form = structures.resolve(structure)
    planner = sound_planner(Planner.of(work, example_inputs, form, keep, None), example_inputs)
    for draw in range(num):
        plan = planner.plan(Random(seed + draw), allocation_of(allocation), budget)
        with masked(work, plan):
            row: Row = {"step": draw + 1, "num_steps": num, **plan.achieved, "judged": judge(work)["accuracy"]}
        rows.append(row)
        if on_step is not None:
            on_step(row)
    best = max(range(num), key=lambda draw: (rows[draw]["judged"], -draw))
    result = prune(
        model,
        example_inputs,
        structure=form,
        saliency=Random(seed + best),
        allocation=allocation,
        budget=budget,
        recover=recover,
        data=data,
        loss=loss,
        keep=keep,
        on_step=on_step,
        **options,
    )
    return replace(result, curve=(*rows, *result.curve))
