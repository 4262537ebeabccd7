"""How a model is trained, as a value: the optimizer and the learning rate at every step."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import nn

from topiarist.errors import InputError, nearest

LRSchedule: TypeAlias = str | Callable[[float], float] | Sequence[object]

_OPTIMIZERS = ("sgd", "adam", "adamw")
_SCHEDULES = ("constant", "cosine")


@dataclass(frozen=True)
class TrainingRecipe:
    """How long to train, with which optimizer, and the learning rate η at every step.

    ``optimizer`` is ``"sgd"`` (with ``momentum``, ``nesterov``), ``"adam"``, ``"adamw"``, or a function
    ``(parameters, lr=…)`` that makes one. ``lr_schedule`` multiplies ``lr``: ``"constant"``; ``"cosine"``, by
    ½(1 + cos πp) at progress p (Loshchilov and Hutter 2017); ``("step", milestones, gamma)``, by ``gamma`` once for
    every milestone (in epochs) passed; or any function of p in [0, 1). ``epochs`` may be a fraction.

    Raises:
        InputError: a number out of range, or a name that is not known.

    Example:
        >>> recipe = TrainingRecipe(epochs=10, lr=0.1, lr_schedule=("step", (5, 8), 0.1))
        >>> [round(recipe.lr_at(step, num_steps=100), 4) for step in (0, 49, 50, 80)]
        [0.1, 0.1, 0.01, 0.001]
    """

    epochs: float = 1
    lr: float = 0.1
    optimizer: str | Callable[..., torch.optim.Optimizer] = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0
    nesterov: bool = False
    lr_schedule: LRSchedule = "constant"

    def __post_init__(self) -> None:
        for name in ("epochs", "lr", "momentum", "weight_decay"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name} must be finite and at least 0, got {value!r}")
        if isinstance(self.optimizer, str) and self.optimizer not in _OPTIMIZERS:
            raise InputError(f"no optimizer is called {self.optimizer!r} ({nearest(self.optimizer, _OPTIMIZERS)})")
        if isinstance(self.lr_schedule, str):
            if self.lr_schedule not in _SCHEDULES:
                raise InputError(
                    f"no lr_schedule is called {self.lr_schedule!r} ({nearest(self.lr_schedule, _SCHEDULES)})"
                )
        elif not callable(self.lr_schedule):
            _step_schedule(self.lr_schedule)

    def num_steps(self, num_batches: int) -> int:
        """How many steps there are in all, for epochs of ``num_batches``; half a step is a step."""
        return math.floor(self.epochs * num_batches + 0.5)

    def lr_at(self, step: int, num_steps: int) -> float:
        """The learning rate η(step), for ``step`` from 0 to ``num_steps`` − 1."""
        if self.lr_schedule == "constant":
            return self.lr
        if self.lr_schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * step / num_steps))
        if callable(self.lr_schedule):
            return self.lr * float(self.lr_schedule(step / num_steps))
        milestones, gamma = _step_schedule(self.lr_schedule)
        return self.lr * gamma ** sum(step * self.epochs >= m * num_steps for m in milestones)

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """A fresh optimizer over the parameters of ``model`` that require a gradient."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        if not parameters:
            raise InputError(f"{type(model).__name__} has no parameter that requires a gradient")
        if callable(self.optimizer):
            return self.optimizer(parameters, lr=self.lr)
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                parameters, self.lr, self.momentum, weight_decay=self.weight_decay, nesterov=self.nesterov
            )
        adam = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return adam(parameters, self.lr, weight_decay=self.weight_decay)


def _step_schedule(schedule: Any) -> tuple[tuple[float, ...], float]:
    with contextlib.suppress(TypeError, ValueError):
        name, milestones, gamma = schedule
        if name == "step":
            return tuple(float(m) for m in milestones), float(gamma)
    raise InputError(
        f"lr_schedule {schedule!r} is not understood; try ('step', (80, 120), 0.1), 'cosine' or a function"
    )
