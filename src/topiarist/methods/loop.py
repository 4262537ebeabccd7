"""The training loop of methods that train more than the weights: gates, decisions, the widths of a network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from topiarist.asked import named_numbers
from topiarist.data.loader import count_batches
from topiarist.errors import InputError, TrainingError
from topiarist.inputs import as_batch
from topiarist.methods.stages import as_first_step
from topiarist.planning import Evaluate
from topiarist.pruning import OnStep, PruneResult
from topiarist.recover.train import Row, device_of, to_device, training_mode

Step = Callable[[Any, Any, float], Row]  # inputs, targets, progress from 0 to 1 → a row with "loss"


def each_step(
    model: nn.Module,
    data: Iterable[Any] | None,
    num_epochs: float,
    step: Step,
    *,
    on_step: OnStep | None = None,
    after_epoch: Callable[[], None] | None = None,
) -> list[Row]:
    """Call ``step`` on the batches of so many epochs, with the model in training mode; one row a step.

    Modes are what they were afterwards. ``on_step`` gets the rows as those of the training of a first pruning step.

    Raises:
        InputError: there is no data, or it yields no pairs.

    Example:
        >>> rows = each_step(nn.Linear(1, 1), [("x", "y")], 2, lambda x, y, progress: {"loss": progress})
        >>> [row["loss"] for row in rows]
        [0.0, 0.5]
    """
    if data is None:
        raise InputError("this method trains: pass data=batches of (inputs, targets)")
    num_batches = count_batches(data)
    num_steps = math.floor(num_epochs * num_batches + 0.5)
    rows: list[Row] = []
    told = as_first_step(on_step)
    with training_mode(model):
        for epoch in range(math.ceil(num_epochs)):
            if hasattr(data, "set_epoch"):
                data.set_epoch(epoch)
            for batch in data:
                if len(rows) == num_steps:
                    break
                inputs, targets = to_device(as_batch(batch), device_of(model))
                row = step(inputs, targets, len(rows) / num_steps)
                rows.append({"step": len(rows), "lr": 0.0, **row})
                if told is not None:
                    told({**rows[-1], "num_steps": num_steps})
            if after_epoch is not None:
                after_epoch()
    return rows


def descend(loss: Tensor, *optimizers: torch.optim.Optimizer) -> float:
    """One step of every optimizer down (or, with ``maximize=True``, up) the gradient of ``loss``; its value.

    Raises:
        TrainingError: the loss is not finite; nothing has moved.
    """
    value = _finite(loss)
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    for optimizer in optimizers:
        optimizer.step()
    return value


def descend_apart(losses: Iterable[tuple[Tensor, Sequence[nn.Parameter]]], *optimizers: torch.optim.Optimizer) -> None:
    """One step of every optimizer, where each group of parameters has a loss of its own.

    Raises:
        TrainingError: a loss is not finite; nothing has moved.
    """
    for loss, parameters in losses:
        _finite(loss)
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) if parameters else ()
        for parameter, gradient in zip(parameters, found, strict=True):
            parameter.grad = gradient
    for optimizer in optimizers:
        optimizer.step()


def _finite(loss: Tensor) -> float:
    value = float(loss.detach())
    if not math.isfinite(value):
        raise TrainingError(f"the loss is {value}; the weights are those before this step. Try a smaller lr")
    return value


def finished(
    result: PruneResult, model: nn.Module, rows: Iterable[Row], evaluate: Evaluate | None, on_step: OnStep | None
) -> PruneResult:
    """The result with the trained ``model`` in it, its evaluation in the curve and ``rows`` in the history."""
    found: Mapping[str, float] = named_numbers(evaluate(model)) if evaluate is not None else {}
    row = {"step": 1, "num_steps": 1, **result.plan.achieved, **found}
    history = tuple({**each, "step": 1, "batch": each["step"]} for each in rows)
    if on_step is not None:
        on_step(row)
    return replace(result, model=model, curve=(row,), history=(*result.history, *history))
