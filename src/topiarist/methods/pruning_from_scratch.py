"""Pruning from Scratch: widths from gates on random weights, found before any training (Wang et al. 2020)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from topiarist.allocation.global_ import Global
from topiarist.errors import InputError
from topiarist.inputs import as_batch, call
from topiarist.mask.gates import Gates, ScalarGate
from topiarist.methods.base import method
from topiarist.methods.loop import descend, each_step, finished
from topiarist.methods.stages import as_first_step
from topiarist.plan import Budget
from topiarist.planning import Evaluate, Loss
from topiarist.pruning import OnStep, PruneResult, prune
from topiarist.recover.recipe import TrainingRecipe
from topiarist.recover.reinitialize import reinitialize
from topiarist.recover.scratch import stretched
from topiarist.recover.train import Row, device_of, to_device, train, training_mode
from topiarist.saliency import Gate


@method(
    paper="Wang, Zhang, Xie, Zhou, Su, Zhang, Hu 2020, Pruning from scratch",
    structure="channel",
    needs=("data", "training"),
    when="before",
    headline="ResNet-50 on ImageNet at 2.0 GFLOPs 75.6 (from memory); the search takes ten epochs of the gates alone",
)
def pruning_from_scratch(
    model: nn.Module,
    example_inputs: Any,
    *,
    data: Iterable[Any],
    loss: Loss,
    budget: Budget,
    ratio: float = 0.2,
    strength: float = 0.5,
    gate_epochs: float = 10,
    gate_lr: float = 0.01,
    validation: Iterable[Any] | None = None,
    equal: str = "epochs",
    seed: int = 0,
    recipe: TrainingRecipe | None = None,
    keep: Sequence[str] = (),
    evaluate: Evaluate | None = None,
    on_step: OnStep | None = None,
    **options: Any,
) -> PruneResult:
    """Learn gates on random, frozen weights, keep the channels of the largest, train that network from scratch.

    The weights of ``model`` are not looked at: they are drawn anew from ``seed``. Gates minimise the loss +
    ``strength`` · (mean |g| − ``ratio``)² (see `learn_gates`); one threshold for all layers is set by bisection so that
    the ``budget`` is met; what is left is drawn anew and trained by ``recipe``, for as many epochs or, with
    ``equal="compute"``, for as many more as it is cheaper; without a recipe it is returned untrained. Other options
    are those of `topiarist.prune`.

    Raises:
        InputError: a number is out of range, there is no data, or a parameter cannot be drawn anew.
        BudgetError: no threshold meets the budget.
    """
    if equal not in ("epochs", "compute"):
        raise InputError(f"training is equal in 'epochs' or in 'compute', got {equal!r}")
    work = copy.deepcopy(model)
    reinitialize(work, seed)
    gates = Gates(work, example_inputs, ScalarGate, keep=keep)
    rows = learn_gates(
        work, gates, data, loss, ratio=ratio, strength=strength, num_epochs=gate_epochs, lr=gate_lr,
        validation=validation, on_step=on_step,
    )  # fmt: skip
    values = {units.name: gates[units.name].deterministic() for units in gates.units}
    for ignored in ("checkpoints", "folder"):  # the model's own training is not gone back to
        options.pop(ignored, None)
    way = {"structure": "channel", "saliency": Gate(values), "allocation": Global("none"), "budget": budget}
    result = prune(work, example_inputs, keep=keep, **way, **options)  # type: ignore[arg-type]
    small = result.model
    reinitialize(small, seed)
    if recipe is not None:
        longer = stretched(recipe, 1 / result.plan.achieved["macs"]) if equal == "compute" else recipe
        rows += train(small, data, loss, longer, on_step=as_first_step(on_step))
    return finished(result, small, rows, evaluate, on_step)


def learn_gates(
    model: nn.Module,
    gates: Gates,
    data: Iterable[Any],
    loss: Loss,
    *,
    ratio: float,
    strength: float = 0.5,
    num_epochs: float = 10,
    lr: float = 0.01,
    validation: Iterable[Any] | None = None,
    on_step: OnStep | None = None,
) -> list[Row]:
    """Minimise loss + λ (Σ |g| / num gates − r)² over the gates alone, by Adam, with norms in training mode.

    After every step gates are clamped to [0, 1]. What they hold in the end are those of the epoch with the least loss,
    on ``validation`` where given, else in training, among the epochs after which mean |g| ≤ r; of the epoch nearest
    to r where there is none. No parameter of ``model`` changes.

    Raises:
        InputError: r is not in (0, 1], or λ is negative.
    """
    if not 0 < ratio <= 1 or not strength >= 0:
        raise InputError(f"the mean gate lies in (0, 1] and its weight is 0 or more, got {ratio!r} and {strength!r}")
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(gates.parameters(), lr=lr)
    seen: list[float] = []
    best: tuple[tuple[float, float], dict[str, Tensor]] = ((math.inf, math.inf), {})

    def step(inputs: Any, targets: Any, progress: float) -> Row:
        task = loss(call(model, inputs), targets)
        descend(task + strength * (gates.density() - ratio).square(), optimizer)
        gates.project()
        seen.append(float(task.detach()))
        return {"loss": seen[-1], "lr": lr, "density": float(gates.density().detach())}

    def after_epoch() -> None:
        nonlocal best
        found = sum(seen) / max(1, len(seen)) if validation is None else _mean_loss(model, validation, loss)
        seen.clear()
        excess = max(0.0, float(gates.density().detach()) - ratio)
        if (excess, found) < best[0]:
            best = (excess, found), {k: v.clone() for k, v in gates.state_dict().items()}

    model.requires_grad_(False)
    gates.attach()
    try:
        rows = each_step(model, data, num_epochs, step, on_step=on_step, after_epoch=after_epoch)
    finally:
        gates.detach()
        for parameter in learning:
            parameter.requires_grad_(True)
    if best[1]:
        gates.load_state_dict(best[1])
    return rows


@torch.no_grad()
def _mean_loss(model: nn.Module, data: Iterable[Any], loss: Loss) -> float:
    """Over batches, in training mode: norms of random weights know no other statistics."""
    with training_mode(model):
        batches = (to_device(as_batch(batch), device_of(model)) for batch in data)
        found = [float(loss(call(model, inputs), targets)) for inputs, targets in batches]
    return sum(found) / max(1, len(found))
