"""Rewinding: go back to an earlier point of training and replay it with the weights that are left.

Weight rewinding (Frankle and Carbin 2019; Frankle et al. 2020) takes the weights of step k, learning-rate rewinding
(Renda, Frankle, Carbin 2020) keeps the last ones; both then replay the learning rates η(k), η(k + 1), … η(T − 1) with a
fresh optimizer. k = 0 is the reset to the initial weights of the lottery-ticket experiments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from topiarist.data.loader import count_batches
from topiarist.errors import InputError
from topiarist.mask.attach import reapply
from topiarist.recover.base import RecoveryContext
from topiarist.recover.recipe import TrainingRecipe
from topiarist.recover.train import Row, train


@dataclass(frozen=True)
class _Rewind:
    to_step: int | None = None
    to_fraction: float | None = None
    recipe: TrainingRecipe | None = None

    def __post_init__(self) -> None:
        if self.to_step is not None and self.to_fraction is not None:
            raise InputError(f"rewind to a step or to a fraction, not to both ({self.to_step} and {self.to_fraction})")
        if (self.to_step or 0) < 0 or not 0 <= (self.to_fraction or 0) <= 1:
            raise InputError(f"a step is at least 0 and a fraction lies in [0, 1], got {self}")

    def step(self, num_steps: int) -> int:
        """The step k that is gone back to, in a training of ``num_steps``; a checkpoint of it is what is needed."""
        return math.floor((self.to_fraction or 0) * num_steps + 0.5) if self.to_step is None else self.to_step

    def __call__(self, model: nn.Module, context: RecoveryContext) -> list[Row]:
        """Go back to step k and train ``model`` in place from there to the recipe's end."""
        data, loss = context.training(self)
        recipe = context.original(self, self.recipe)
        num_steps = recipe.num_steps(count_batches(data))
        step = self.step(num_steps)
        if step > num_steps:
            raise InputError(f"cannot rewind to step {step}: the recipe has {num_steps} steps")
        self._prepare(model, context, step)
        return train(model, data, loss, recipe, start_step=step, on_step=context.progress)

    def _prepare(self, model: nn.Module, context: RecoveryContext, step: int) -> None:
        """What happens to the weights before the replay."""


@dataclass(frozen=True)
class WeightRewind(_Rewind):
    """Weights and buffers (batch-norm statistics too) of step k, masked as they are now; then η(k), η(k + 1), ….

    k is ``to_step``, or ``to_fraction`` of the recipe's steps, or 0; the context's checkpoints must hold it.

    Raises:
        InputError: no data, loss, recipe or checkpoints, or no checkpoint of step k.

    Example:
        >>> WeightRewind(to_fraction=0.25).step(num_steps=200)
        50
    """

    def _prepare(self, model: nn.Module, context: RecoveryContext, step: int) -> None:
        if context.checkpoints is None:
            raise InputError(
                f"WeightRewind needs the checkpoints of the training; train with Checkpoints(steps=[{step}])"
            )
        context.checkpoints.restore(step, model)
        reapply(model)


@dataclass(frozen=True)
class LRRewind(_Rewind):
    """The weights stay; the learning rates η(k), η(k + 1), … are replayed.

    k is ``to_step``, or ``to_fraction`` of the recipe's steps, or 0.

    Raises:
        InputError: no data, loss or recipe.

    Example:
        >>> LRRewind(to_step=7).step(num_steps=200)
        7
    """
