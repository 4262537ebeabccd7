"""Zeroing without holding: what is cut goes on learning, and may come back (soft pruning)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from topiarist.graph import Axes
from topiarist.plan import Member, Plan


@torch.no_grad()
def zero_once(model: nn.Module, plan: Plan, axes: Axes) -> None:
    """Zero the weights that make what ``plan`` removes, once (SFP, He et al. 2018; FPGM, He et al. 2019).

    Of channels and heads only the rows of the weights that make them are zeroed, not their norms nor what reads them:
    with both ends at zero no gradient would reach either, and nothing could come back. Until the plan is held
    (`topiarist.mask`), norms and biases still pass on a constant.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if not plan.slices:  # entries, which have no other end
        for name, gone in plan.masks(model).items():
            parameters[name].masked_fill_(gone, 0)
        return
    for name, removed in plan.removed.items():
        for member in axes.makers(name) or axes[name].members:
            if member.tensor in parameters:
                _zero(parameters, member, removed)


def _zero(parameters: Mapping[str, Tensor], member: Member, removed: Tensor) -> None:
    parameter = parameters[member.tensor]
    if member.dim is None or member.unit is None:
        raise AssertionError("members of axes index a dimension")
    unit = member.unit.cpu()
    positions = ((unit >= 0) & removed.cpu()[unit.clamp(min=0)]).nonzero().flatten()
    parameter.index_fill_(member.dim, positions.to(parameter.device), 0)
