"""Training the pruned architecture from scratch: the control that every pruning is measured by (Liu et al. 2019)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from topiarist.errors import InputError
from topiarist.mask.attach import reapply
from topiarist.plan import Plan
from topiarist.recover.base import RecoveryContext
from topiarist.recover.recipe import TrainingRecipe
from topiarist.recover.reconstruct import tensors_of
from topiarist.recover.reinitialize import reinitialize
from topiarist.recover.train import Row, device_of, train
from topiarist.shrink import shrink
from topiarist.shrink.apply import rescaled


@dataclass(frozen=True)
class Scratch:
    """Fresh weights of the *small* architecture, then the recipe: for as many epochs (scratch-E), or as much compute.

    With ``equal="compute"`` (scratch-B) epochs are int(E / m), where m is the fraction of multiply–accumulates that is
    left, at most ``cap`` · E (2 on ImageNet, where the control was proposed). Milestones stretch alike. Weights are
    drawn as the small layers draw them; for single weights from N(0, 2 / n) with n non-zeros for each input channel.

    Raises:
        InputError: no data, loss or recipe, an unknown ``equal``, or a plan that does not say what is left.
    """

    equal: str = "epochs"
    cap: float | None = None
    seed: int = 0
    recipe: TrainingRecipe | None = None

    def __post_init__(self) -> None:
        if self.equal not in ("epochs", "compute"):
            raise InputError(f"scratch is equal in 'epochs' (E) or in 'compute' (B), got {self.equal!r}")

    def __call__(self, model: nn.Module, context: RecoveryContext) -> list[Row]:
        """Draw new weights and train ``model`` in place."""
        data, loss = context.training(self)
        recipe = context.original(self, self.recipe)
        if self.equal == "compute":
            left = None if context.plan is None else context.plan.achieved.get("macs")
            if not left:
                raise InputError("scratch-B needs a plan that says what is left of the MACs, as topiarist.plan's do")
            recipe = stretched(recipe, 1 / left, self.cap)
        draw(model, context.plan, self.seed)
        return train(model, data, loss, recipe, on_step=context.progress)


def stretched(recipe: TrainingRecipe, ratio: float, cap: float | None = None) -> TrainingRecipe:
    """The recipe over int(epochs · min(ratio, cap)) epochs, its milestones moved in proportion.

    Example:
        >>> recipe = TrainingRecipe(160, 0.1, lr_schedule=("step", (80, 120), 0.1))
        >>> longer = stretched(recipe, 1.38)
        >>> longer.epochs, longer.lr_schedule
        (220, ('step', (110.0, 165.0), 0.1))
    """
    epochs = int(recipe.epochs * (ratio if cap is None else min(ratio, cap)))
    schedule: Any = recipe.lr_schedule
    if not isinstance(schedule, str) and not callable(schedule):
        name, milestones, gamma = schedule
        schedule = (name, tuple(m * epochs / recipe.epochs for m in milestones), gamma)
    return replace(recipe, epochs=epochs, lr_schedule=schedule)


@torch.no_grad()
def draw(model: nn.Module, plan: Plan | None, seed: int = 0) -> None:
    """Draw the weights of ``model``, masked by ``plan``, as the smaller architecture would; in place.

    Raises:
        InputError: a parameter that no ``reset_parameters`` covers, or a plan of ranks, which is no mask of weights
            (nothing is changed).
    """
    if plan is not None and plan.bases:
        raise InputError("a layer of lower rank cannot be drawn anew as a smaller one; try recover='fine-tune'")
    if plan is not None and (plan.slices or plan.bypassed):
        small = shrink(model, plan)
        reinitialize(small, seed)
        _embed(model, small, plan)
    else:
        reinitialize(model, seed)
        _scaled(model, {} if plan is None else plan.masks(model), seed)
    reapply(model)


def _scaled(model: nn.Module, masks: Mapping[str, Tensor], seed: int) -> None:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    generator = torch.Generator().manual_seed(seed)
    for name, removed in masks.items():
        weight = parameters[name]
        if weight.dim() > 1:
            num = max(1.0, int((~removed).sum()) / weight.shape[1])
            weight.copy_(torch.randn(weight.shape, generator=generator) * (2 / num) ** 0.5)


def _embed(model: nn.Module, small: nn.Module, plan: Plan) -> None:
    """Write the tensors of the smaller model to where they were cut from; what was removed is zero, or as it was where
    a whole module is."""
    inner = tensors_of(small)
    for name, tensor in tensors_of(model).items():
        own = plan.renamed(name)
        if own not in inner:
            continue
        value, index = inner[own], [torch.arange(n, device=tensor.device) for n in tensor.shape]
        for piece in plan.slices.get(name, ()):
            kept = ~piece.removed.to(tensor.device)
            index[piece.dim] = index[piece.dim][kept[index[piece.dim]]]
        if tensor.shape == value.shape:
            tensor.copy_(value)
        else:
            if tensor.is_floating_point() and not name.endswith("running_var"):
                tensor.zero_()
            tensor[torch.meshgrid(*index, indexing="ij")] = value.to(device_of(model))
        if name in plan.rescaled:  # which the cut will do
            inverse = tuple(replace(scale, factor=1 / scale.factor) for scale in plan.rescaled[name])
            tensor.copy_(rescaled(name, tensor, inverse))
