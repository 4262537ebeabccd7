"""Fine-tuning: train on from the weights that are left (Han et al. 2015)."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from topiarist.recover.base import RecoveryContext
from topiarist.recover.recipe import TrainingRecipe
from topiarist.recover.train import Row, train


@dataclass(frozen=True)
class FineTune:
    """Train the pruned weights on by ``recipe``: one epoch at a constant learning rate of 0.01 unless told otherwise.

    The literature takes the last learning rate of the training before (Renda, Frankle, Carbin 2020).

    Raises:
        InputError: the context has no data or no loss.

    Example:
        >>> FineTune(TrainingRecipe(epochs=2, lr=0.001)).recipe.lr_schedule
        'constant'
    """

    recipe: TrainingRecipe = field(default_factory=lambda: TrainingRecipe(epochs=1, lr=0.01))

    def __call__(self, model: nn.Module, context: RecoveryContext) -> list[Row]:
        """Train ``model`` in place."""
        data, loss = context.training(self)
        return train(model, data, loss, self.recipe, on_step=context.progress)
