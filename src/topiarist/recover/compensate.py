"""Compensation: the mean of what is removed moves into the bias that follows (FLAP, An et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from topiarist.errors import InputError
from topiarist.mask.attach import reapply
from topiarist.plan import Plan
from topiarist.recover.base import RecoveryContext
from topiarist.recover.reconstruct import add_constant, first_batches, slot_of, tensors_of
from topiarist.recover.train import Row, device_of
from topiarist.recover.wiring import Site, wiring
from topiarist.stats import Moments, collect_inputs


@dataclass(frozen=True)
class Compensate:
    """b ← b + Σ_j W_j E[x_j] over the inputs j that are removed, with means of the dense model over data.

    A constant input, such as what a batch norm and a relu leave of a channel that is zero before them, is replaced
    exactly (at the borders of zero-padded images, up to the padding). Products without a bias that a batch norm follows
    take it into the running mean; ones with neither are left as they are. ``max_samples`` says how much data.

    Raises:
        InputError: no data, or the dense model is not known.
    """

    max_samples: int = 1024

    def __call__(self, model: nn.Module, context: RecoveryContext) -> list[Row]:
        """Compensate ``model`` in place."""
        data, original, plan = context.compared(self)
        if plan is not None:
            compensate(model, original, data, plan, self.max_samples)
        return []


@torch.no_grad()
def compensate(
    model: nn.Module, original: nn.Module, data: Iterable[Any], plan: Plan, max_samples: int = 1024
) -> list[str]:
    """Set the biases of ``model``, masked by ``plan``, to those of ``original`` plus the means of what is gone.

    Returns:
        The weights whose product has lost inputs and has no bias or batch norm to take their mean.

    Raises:
        InputError: there are no batches.

    Example:
        >>> import copy
        >>> dense = nn.Linear(2, 1)
        >>> _ = dense.weight.data.fill_(3.0), dense.bias.data.fill_(1.0)
        >>> cut = copy.deepcopy(dense); cut.weight.data[0, 1] = 0.0
        >>> plan = Plan("weight", {"weight": torch.tensor([False, True])})
        >>> compensate(cut, dense, [torch.tensor([[1.0, 2.0], [5.0, 2.0]])], plan), cut.bias.item()
        ([], 7.0)
    """
    batches = list(first_batches(data, max_samples, device_of(model)))
    if not batches:
        raise InputError("the data yielded no batch; is the loader empty, or an iterator that is used up?")
    sites, masks = wiring(original, batches[0]), plan.masks(model)
    means = {site.weight: Moments() for site in sites if site.weight in masks}
    collect_inputs(original, [(inputs, None) for inputs in batches], means)
    weights, left = tensors_of(original), []
    for site in sites:
        if site.weight in means:
            change = _change(site, weights[site.weight], masks[site.weight], means[site.weight].mean)
            slot = slot_of(site, sites)
            if slot is not None:
                add_constant(site, slot, change, model, onto=original)
            elif change.any():
                left.append(site.weight)
    reapply(model)
    return left


def _change(site: Site, weight: Tensor, removed: Tensor, mean: Tensor) -> Tensor:
    """Σ_j W_j E[x_j] over removed inputs j: float64 of shape (outputs,)."""
    gone = site.matrix(weight.double() * removed)  # (groups, outputs, inputs), the kernel's positions last
    per_feature = gone.view(*gone.shape[:2], mean.shape[-1], -1).sum(-1)
    return torch.einsum("goi,gi->go", per_feature, mean).flatten()
