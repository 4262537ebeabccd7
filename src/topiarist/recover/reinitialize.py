"""Re-initialisation: the pruned architecture trained from fresh weights (Liu et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from topiarist.errors import InputError
from topiarist.mask.attach import reapply
from topiarist.recover.base import RecoveryContext
from topiarist.recover.recipe import TrainingRecipe
from topiarist.recover.train import Row, device_of, train


@dataclass(frozen=True)
class Reinitialize:
    """Fresh weights from ``seed``, the masks kept, and the whole recipe replayed.

    Every module's own ``reset_parameters`` draws its weights, inner modules first, so that an outer one can refine
    them. torch's random state is as before afterwards.

    Raises:
        InputError: no data, loss or recipe, or a parameter that no ``reset_parameters`` covers (nothing is changed).
    """

    seed: int = 0
    recipe: TrainingRecipe | None = None

    def __call__(self, model: nn.Module, context: RecoveryContext) -> list[Row]:
        """Draw new weights and train ``model`` in place."""
        data, loss = context.training(self)
        recipe = context.original(self, self.recipe)
        reinitialize(model, self.seed)
        return train(model, data, loss, recipe, on_step=context.progress)


def reinitialize(model: nn.Module, seed: int = 0) -> None:
    """Draw the weights of ``model`` anew from ``seed``, in place; what is masked stays zero.

    Raises:
        InputError: a parameter that no ``reset_parameters`` covers (nothing is changed).

    Example:
        >>> model = nn.Linear(2, 2)
        >>> reinitialize(model, seed=1); first = model.weight.clone()
        >>> reinitialize(model, seed=1); bool((model.weight == first).all())
        True
    """
    resettable = {name for name, module in model.named_modules() if _reset(module)}
    for name, _ in model.named_parameters():
        owners = name.split(".")[:-1]
        if not any(".".join(owners[:depth]) in resettable for depth in range(len(owners) + 1)):
            raise InputError(
                f"{name} cannot be drawn anew: neither its module nor one around it has reset_parameters(); add one"
            )
    device = device_of(model)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(seed)
        for module in reversed(list(model.modules())):
            if reset := _reset(module):
                reset()
    reapply(model)


def _reset(module: nn.Module) -> Any:
    for name in ("reset_parameters", "_reset_parameters"):  # the second is torch's own, in attention
        if callable(reset := getattr(module, name, None)):
            return reset
    return None
