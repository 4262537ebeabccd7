"""How the networks of the zoo are written down and built."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Entry = tuple[nn.Module, Any]
Factory = Callable[[], Entry]

ZOO: dict[str, Factory] = {}


class Net(nn.Module):
    """A module from a function ``forward(self, *inputs)`` and whatever that function reads from ``self``."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


def build(name: str, seed: int = 0) -> Entry:
    """The network called ``name`` and its example inputs, drawn from ``seed``; global random state stays as it was.

    Example:
        >>> model, inputs = build("mlp")
        >>> model(inputs).shape
        torch.Size([3, 4])
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model, inputs = ZOO[name]()
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) / max(1, parameter[0].numel()) ** 0.5 + 0.05)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
        return model, inputs


def net(factory: Factory) -> Factory:
    """Put a network into `ZOO` under the function's name."""
    ZOO[factory.__name__] = factory
    return factory


def x(*shape: int) -> Tensor:
    """Inputs of a shape."""
    return torch.randn(*shape)
