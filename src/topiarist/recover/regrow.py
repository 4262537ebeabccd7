"""Sparse training: the mask moves while the weights that are left learn (RigL, SET)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from topiarist.data.loader import count_batches
from topiarist.errors import InputError
from topiarist.mask.regrow import Grow, Regrower
from topiarist.recover.base import RecoveryContext
from topiarist.recover.recipe import TrainingRecipe
from topiarist.recover.train import Row, train


@dataclass(frozen=True)
class Regrow:
    """Train by ``recipe`` with a `topiarist.mask.Regrower`, for plans of single weights; the last mask holds.

    ``until`` is the part of the training in which weights are exchanged, ``every`` how many steps lie between two
    exchanges, ``fraction`` and ``grow`` are those of the regrower (Evci et al. 2020; Mocanu et al. 2018).

    Raises:
        InputError: no data or no loss, ``until`` outside (0, 1], or units that are not single weights.
    """

    recipe: TrainingRecipe = field(default_factory=TrainingRecipe)
    grow: Grow = "gradient"
    every: int = 100
    fraction: float = 0.3
    until: float = 0.75
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.until <= 1:
            raise InputError(f"until is a part of the training, in (0, 1], got {self.until!r}; try 0.75")

    def __call__(self, model: nn.Module, context: RecoveryContext) -> list[Row]:
        """Train ``model`` in place; its mask moves."""
        data, loss = context.training(self)
        if context.plan is None:
            raise InputError("Regrow moves the mask of a plan, and there is none")
        end = max(1, math.ceil(self.until * self.recipe.num_steps(count_batches(data))))
        regrower = Regrower(
            model, context.plan, end=end, every=self.every, fraction=self.fraction, grow=self.grow, seed=self.seed
        )

        def on_step(row: Mapping[str, float]) -> None:
            regrower.step()  # the gradients of the step are still there
            if context.progress is not None:
                context.progress(row)

        return train(model, data, loss, self.recipe, on_step=on_step)
