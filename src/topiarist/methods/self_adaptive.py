"""Self-adaptive network pruning: which channels are computed depends on the sample (Chen et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import nn

from topiarist.errors import BudgetError, InputError
from topiarist.inputs import as_batch, call
from topiarist.mask.adaptive import SelfAdaptive
from topiarist.measure.params import num_params
from topiarist.measure.quiet import undisturbed
from topiarist.methods.base import method
from topiarist.methods.loop import descend, each_step, finished
from topiarist.plan import Budget, Plan
from topiarist.planning import Evaluate, Loss
from topiarist.pruning import OnStep, PruneResult
from topiarist.recover.train import Row, device_of, to_device

_CLOSE = 0.01  # of the budget, which the learnt decisions may miss before they are shifted
_FARTHEST = 16.0  # a logit at which everything is closed
_HALVINGS = 20
_NUM_BATCHES = 32  # that the threshold is found on


@method(
    paper="Chen, Guo, Zhang, Wang, Zhang 2019, Self-adaptive network pruning",
    structure="channel",
    needs=("data", "training"),
    when="during",
    headline="none confirmed; fewer multiply–accumulates for easy images than for hard ones",
)
def self_adaptive(
    model: nn.Module,
    example_inputs: Any,
    *,
    data: Iterable[Any],
    loss: Loss,
    budget: Budget,
    epochs: float = 10,
    lr: float = 1e-4,
    decision_lr: float = 1e-2,
    strength: float = 1.0,
    reduction: int = 8,
    round_to: int = 8,
    keep: Sequence[str] = (),
    evaluate: Evaluate | None = None,
    on_step: OnStep | None = None,
    **_: Any,
) -> PruneResult:
    """Learn, sample by sample, which channels each convolution computes, at a mean cost that is given.

    From the trained ``model`` a `topiarist.mask.SelfAdaptive` is made; its weights (Adam, ``lr``) and its decisions
    (``decision_lr``) minimise the loss + ``strength`` · (mean cost − ``budget``)², the cost being multiply–accumulates
    over those of ``model``, the decisions' own included. What is missed in the end is made up for by one threshold for
    all decisions, found by bisection on the first 32 batches. At batch 1 closed channels are really skipped, rounded up
    to a multiple of ``round_to``, which the cost counts; that is faster than the dense network only where convolutions
    are large (docs/speed.md). The plan removes nothing; its
    ``achieved["macs"]`` is the mean over ``data``.

    Raises:
        InputError: the budget is not one of ``macs``, or no channels can be skipped in this model.
        BudgetError: the budget is less than what the network costs with all that can be closed closed.
    """
    if budget.unit != "macs":
        raise InputError(f"what a sample costs is counted in macs, got {budget!r}; try Budget(macs=0.5)")
    work = SelfAdaptive(model, example_inputs, reduction=reduction, keep=keep, round_to=round_to).train(model.training)
    deciding = [p for decision in work.decisions.values() for p in decision.parameters()]
    ids = {id(p) for p in deciding}
    optimizers = (
        torch.optim.Adam([p for p in work.parameters() if id(p) not in ids and p.requires_grad], lr),
        torch.optim.Adam(deciding, decision_lr),
    )

    def step(inputs: Any, targets: Any, progress: float) -> Row:
        task = loss(call(work, inputs), targets)
        cost = work.cost().mean()
        descend(task + strength * (cost - budget.value).square(), *optimizers)
        return {"loss": float(task.detach()), "lr": lr, "macs": float(cost.detach()), "variance": variance(work)}

    rows = each_step(work, data, epochs, step, on_step=on_step)
    _calibrate(work, list(islice(data, _NUM_BATCHES)), budget.value)
    cost = mean_cost(work, data)
    nothing = {name: torch.zeros(d.current.shape[1], dtype=torch.bool) for name, d in work.decisions.items()}
    params = num_params(work) / num_params(model)
    achieved = {"sparsity": 0.0, "compression": 1 / params, "macs": cost, "params": params}
    plan = Plan("channel", nothing, requested={"macs": budget.value}, achieved=achieved)
    why = "its layers decide what they compute, which the class of the model does not"
    return finished(PruneResult(work, plan, (), (), None, {}, "topiarist.load", why), work, rows, evaluate, on_step)


def variance(model: SelfAdaptive) -> float:
    """The variance of decisions between the samples of the last call, a mean over channels: 0 where all are alike."""
    found = [decision.current.detach().var(0, correction=0).mean() for decision in model.decisions.values()]
    return float(torch.stack(found).mean())


def mean_cost(model: SelfAdaptive, data: Iterable[Any]) -> float:
    """The mean of `SelfAdaptive.cost` over the samples of ``data``, in evaluation mode.

    Raises:
        InputError: there is no data.
    """
    total, num = 0.0, 0
    with undisturbed(model):
        for batch in data:
            inputs, _ = to_device(as_batch(batch), device_of(model))
            call(model, inputs)
            cost = model.cost()
            total, num = total + float(cost.sum()), num + len(cost)
    if not num:
        raise InputError("the cost is a mean over data, which yields no batch")
    return total / num


def _calibrate(model: SelfAdaptive, batches: Sequence[Any], target: float) -> None:
    """Shift the threshold of all decisions until the mean cost of some batches is at the target."""
    if abs(mean_cost(model, batches) - target) <= _CLOSE * target:
        return
    low, high = -_FARTHEST, _FARTHEST
    model.shift(high)
    least = mean_cost(model, batches)
    if least > target:
        raise BudgetError(f"asked for macs={target:g}, nearest is macs={least:.6g}: one channel of each layer is open")
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        model.shift(middle)
        found = mean_cost(model, batches)
        if abs(found - target) <= _CLOSE * target:
            return
        low, high = (middle, high) if found > target else (low, middle)
    model.shift(high)  # decisions that are alike for many samples change together
