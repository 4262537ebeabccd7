"""How far training moves each weight away from zero, recorded step by step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook


@contextmanager
def record_movement(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Inside the ``with``, record S = −Σ_t w_t · ∂L/∂w_t of every parameter over the steps that optimizers take.

    Gradients are those that an optimizer is about to use, after clipping. Positive where the weight moves away from
    zero (Sanh, Wolf, Rush 2020, with a learning rate of scores of 1).

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(layer.weight, 2.0)
        >>> with record_movement(layer) as scores:
        ...     layer(torch.ones(1, 1)).sum().backward()
        ...     torch.optim.SGD(layer.parameters(), lr=0.1).step()
        >>> scores
        {'weight': tensor([[-2.]])}
    """
    parameters = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    scores = {
        name: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32), requires_grad=False)
        for name, p in parameters.items()
    }

    @torch.no_grad()
    def before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        del args, kwargs
        stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, parameter in parameters.items():
            if id(parameter) in stepped and parameter.grad is not None:
                scores[name].addcmul_(parameter.detach(), parameter.grad, value=-1)

    handle = register_optimizer_step_pre_hook(before_step)
    try:
        yield scores
    finally:
        handle.remove()
