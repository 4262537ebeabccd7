"""The training loop: one for the command line, for every recovery, and for replays from the middle of a schedule."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from topiarist.asked import named_numbers, require_loss
from topiarist.data.loader import count_batches
from topiarist.errors import InputError, TrainingError
from topiarist.inputs import as_batch, as_scalar, call
from topiarist.recover.checkpoints import Checkpoints
from topiarist.recover.recipe import TrainingRecipe

Loss: TypeAlias = Callable[[Any, Any], Tensor]  # (outputs, targets) → a scalar
Row: TypeAlias = dict[str, float]  # "step", "loss", "lr", and what `evaluate` returned
OnStep: TypeAlias = Callable[[Mapping[str, float]], None]  # gets each row, with "num_steps" beside it


def train(
    model: nn.Module,
    data: Iterable[Any],
    loss: Loss,
    recipe: TrainingRecipe,
    *,
    start_step: int = 0,
    resume: bool = False,
    checkpoints: Checkpoints | None = None,
    on_step: OnStep | None = None,
    evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
    before_step: Callable[[nn.Module], object] | None = None,
) -> list[Row]:
    """Train ``model`` in place on ``data`` and return one row per step: ``{"step", "loss", "lr"}``.

    ``start_step`` enters the recipe in the middle: at that step's learning rate and, for data with ``set_epoch``, at
    that step's batch. ``checkpoints`` saves the steps it was made for; on Ctrl-C the step in progress is finished and
    saved too, and ``resume=True`` goes on from the last one saved, optimizer and torch's random state (on the CPU)
    included. ``evaluate`` runs after every epoch and at the end, and what it returns joins that step's row. The model
    trains in training mode; afterwards every module's mode is what it was. ``before_step`` is called with the model
    between the gradients and the optimizer's step, as the penalties of `topiarist.mask` are; at ``on_step`` the
    gradients are still there.

    Raises:
        InputError: ``data`` yields nothing or no pairs, or ``start_step`` lies outside the recipe.
        TrainingError: the loss is not finite; the weights are those after the step before.

    Example:
        >>> data = [(torch.tensor([[1.0]]), torch.tensor([[2.0]]))]
        >>> rows = train(nn.Linear(1, 1), data, nn.functional.mse_loss, TrainingRecipe(epochs=3, lr=0.01))
        >>> [row["step"] for row in rows], rows[-1]["loss"] < rows[0]["loss"]
        ([0, 1, 2], True)
    """
    require_loss(loss)
    num_batches = count_batches(data)
    num_steps = recipe.num_steps(num_batches)
    optimizer = recipe.make_optimizer(model)
    if resume and checkpoints is not None and checkpoints.saved:
        start_step = checkpoints.saved[-1]
        checkpoints.restore(start_step, model, optimizer, random=True)
    if not 0 <= start_step <= num_steps:
        raise InputError(f"start_step {start_step} lies outside the recipe's {num_steps} steps")
    rows: list[Row] = []
    whole = True  # whether the model is between two steps
    step = start_step
    try:
        with training_mode(model), _interrupt_between_steps() as interrupted:
            _save(checkpoints, step, model, optimizer)
            for batch in _replay(data, num_batches, start_step, num_steps):
                lr = recipe.lr_at(step, num_steps)
                whole = False
                row: Row = {"step": step, "loss": _step(model, batch, loss, optimizer, lr, step, before_step), "lr": lr}
                whole = True
                step += 1
                rows.append(row)
                _save(checkpoints, step, model, optimizer)
                if evaluate is not None and (step % num_batches == 0 or step == num_steps):
                    row.update(named_numbers(evaluate(model)))
                    model.train()
                if on_step is not None:
                    on_step({**row, "num_steps": num_steps})
                if interrupted.is_set():
                    raise KeyboardInterrupt
    except KeyboardInterrupt:
        if checkpoints is not None and whole:
            checkpoints.save(step, model, optimizer)
        raise
    return rows


def to_device(values: Any, device: torch.device) -> Any:
    """Tensors, and tuples, lists and dicts of them, on ``device``; anything else as it is."""
    if isinstance(values, Tensor):
        return values.to(device)
    if isinstance(values, (tuple, list)):
        return tuple(to_device(v, device) for v in values)
    return {k: to_device(v, device) for k, v in values.items()} if isinstance(values, Mapping) else values


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter or buffer lies (the CPU if it has none)."""
    for tensor in (*islice(model.parameters(), 1), *islice(model.buffers(), 1)):
        return tensor.device
    return torch.device("cpu")


def _step(
    model: nn.Module,
    batch: Any,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    lr: float,
    step: int,
    before_step: Callable[[nn.Module], object] | None,
) -> float:
    inputs, targets = to_device(as_batch(batch), optimizer.param_groups[0]["params"][0].device)
    for group in optimizer.param_groups:
        group["lr"] = lr
    value = as_scalar(loss(call(model, inputs), targets))
    number = float(value.detach())
    if not math.isfinite(number):
        raise TrainingError(
            f"the loss is {number} at step {step} (lr {lr:g}); the weights are those before this step. Try a smaller "
            "lr, and look for NaN in the inputs and targets"
        )
    optimizer.zero_grad()
    value.backward()  # type: ignore[no-untyped-call]
    if before_step is not None:
        before_step(model)
    optimizer.step()
    return number


def _save(checkpoints: Checkpoints | None, step: int, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    if checkpoints is not None:
        checkpoints.reached(step, model, optimizer)


def _replay(data: Iterable[Any], num_batches: int, start: int, stop: int) -> Iterator[Any]:
    """The batches of steps ``start`` to ``stop``, epoch by epoch."""
    epoch, skip = divmod(start, num_batches)
    while start < stop:
        if hasattr(data, "set_epoch"):
            data.set_epoch(epoch)
        wanted = min(stop - start, num_batches - skip)
        found = 0
        for batch in islice(data, skip, skip + wanted):
            found += 1
            yield batch
        if found < wanted:
            raise InputError(f"data said {num_batches} batches and yielded {skip + found} in epoch {epoch}")
        start, epoch, skip = start + wanted, epoch + 1, 0


@contextmanager
def training_mode(model: nn.Module) -> Iterator[None]:
    """Training mode and gradients inside the ``with``, and the modes of before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    try:
        with torch.enable_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _interrupt_between_steps() -> Iterator[threading.Event]:
    """Ctrl-C sets the event instead of breaking into a step; a second one breaks in after all."""
    pressed = threading.Event()

    def remember(signum: int, frame: object) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield pressed
        return
    signal.signal(signal.SIGINT, remember)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
