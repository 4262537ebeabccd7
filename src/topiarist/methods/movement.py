"""Movement pruning: in fine-tuning, the weights stay that move away from zero (Sanh, Wolf, Rush 2020)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from topiarist import schedule as schedules
from topiarist.errors import InputError
from topiarist.mask import StraightThrough
from topiarist.methods.base import method
from topiarist.methods.training import train_first, with_training
from topiarist.plan import Budget
from topiarist.planning import Evaluate, Loss
from topiarist.pruning import OnStep, PruneResult, prune
from topiarist.recover import TrainingRecipe
from topiarist.saliency import Movement
from topiarist.schedule import PerLayer


@method(
    paper="Sanh, Wolf, Rush 2020, Movement pruning: adaptive sparsity by fine-tuning",
    structure="weight",
    needs=("data", "gradients", "training"),
    when="during",
    headline="BERT-base on SQuAD with 3 % of the weights: 67.5 exact match, 78.0 F1; magnitude 45.5 and 59.6",
)
def movement(
    model: nn.Module,
    example_inputs: Any,
    *,
    budget: Budget,
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    recipe: TrainingRecipe | None = None,
    schedule: Any = "movement",
    scores_lr: float = 1e-2,
    allocation: Any = "uniform",
    keep: Sequence[str] = (),
    evaluate: Evaluate | None = None,
    on_step: OnStep | None = None,
    **_: Any,
) -> PruneResult:
    """While the model is fine-tuned, remove the weights of lowest S = −Σ_t w_t · ∂L/∂w_t, which shrink towards zero.

    The hard form: at each step the weights of the highest scores run (`topiarist.mask.StraightThrough`), as many as the
    ``schedule`` leaves, cubic between plateaus; scores learn by Adam at ``scores_lr``, weights by ``recipe`` (one epoch
    at 0.01 where there is none). ``allocation`` "uniform" is the top of each matrix, "global" that of all together.

    Raises:
        InputError: no data or no loss, or a schedule by layer.
    """
    work, removed_at = copy.deepcopy(model), schedules.resolve(schedule)
    if isinstance(removed_at, PerLayer):
        raise InputError("movement pruning follows one schedule for all layers, got one by layer; try 'movement'")
    masks = StraightThrough(work, example_inputs, allocation=allocation, keep=keep)
    optimizer = torch.optim.Adam(masks.parameters(), lr=scores_lr)

    def after_step(row: Mapping[str, float]) -> None:
        optimizer.step()
        optimizer.zero_grad()
        masks.sparsity = removed_at((row["step"] + 1) / row["num_steps"], budget.removed)

    masks.attach()
    rows = train_first(work, data, loss, recipe or TrainingRecipe(epochs=1, lr=0.01), on_step, after_step)
    masks.detach()
    scores = {u.name: score.detach() for u, score in zip(masks.units, masks.scores, strict=True)}
    told = {"saliency": Movement(scores), "allocation": allocation, "keep": keep, "evaluate": evaluate}
    return with_training(prune(work, example_inputs, budget=budget, on_step=on_step, **told), rows)
