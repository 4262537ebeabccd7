"""An optimizer that goes on where it was when the model has shrunk: momentum and moments are cut like the weights."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from topiarist.errors import InputError
from topiarist.plan import Plan, Slice


def carry_optimizer(
    optimizer: torch.optim.Optimizer, model: nn.Module, small: nn.Module, plan: Plan
) -> torch.optim.Optimizer:
    """An optimizer over ``small``, which is ``model`` shrunk by ``plan``, with the state that ``optimizer`` has.

    Options and groups of parameters are the same, state of a parameter's shape (momentum, Adam's moments) loses the
    positions that the parameter lost, the rest (step counts) is copied: training goes on as that of the masked model
    would, exactly so on axes that are exact. ``optimizer`` is left as it is.

    Raises:
        InputError: the optimizer holds a parameter that is not the model's, or a state of another shape.

    Example:
        >>> import topiarist
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        >>> net(torch.ones(1, 4)).sum().backward(); optimizer.step()
        >>> plan = topiarist.plan(net, torch.zeros(1, 4), structure="channel", budget=topiarist.Budget(sparsity=0.5))
        >>> small = topiarist.shrink(net, plan)
        >>> carried = carry_optimizer(optimizer, net, small, plan)
        >>> carried.state[small[0].weight]["momentum_buffer"].shape
        torch.Size([4, 4])
    """
    names = {id(p): name for name, p in reversed([*model.named_parameters(remove_duplicate=False)])}
    parameters = dict(small.named_parameters(remove_duplicate=False))
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in held:
        if id(parameter) not in names:
            raise InputError(
                f"the optimizer holds a parameter of shape {tuple(parameter.shape)} that {type(model).__name__} lacks"
            )
    left = {id(p): own for p in held if (own := plan.renamed(names[id(p)])) is not None}
    groups = [
        {**group, "params": [parameters[left[id(p)]] for p in group["params"] if id(p) in left]}
        for group in optimizer.param_groups
    ]
    accepted = inspect.signature(type(optimizer)).parameters
    carried = type(optimizer)(groups, **{k: v for k, v in optimizer.defaults.items() if k in accepted})
    for parameter, state in optimizer.state.items():
        if id(parameter) not in left:
            continue
        name = names[id(parameter)]
        carried.state[parameters[left[id(parameter)]]] = {
            key: _cut(f"{key} of {name}", value, parameter, plan.slices.get(name, ())) for key, value in state.items()
        }
    return carried


def _cut(what: str, value: Any, parameter: Tensor, slices: tuple[Slice, ...]) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.dim() and value.shape != parameter.shape:
        raise InputError(
            f"the optimizer's {what} has shape {tuple(value.shape)}, the parameter {tuple(parameter.shape)}: such a "
            "state cannot be cut; make a new optimizer"
        )
    cut = value.detach().clone()
    for piece in slices if value.dim() else ():
        cut = cut.index_select(piece.dim, (~piece.removed).nonzero().flatten().to(cut.device))
    return cut
