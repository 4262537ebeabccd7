"""Noise outputs: a head that learns noise while the network trains, so that hidden units grow alike (NoiseOut)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from topiarist.data.loader import first_batch
from topiarist.errors import InputError, nearest
from topiarist.inputs import as_batch
from topiarist.recover.base import RecoveryContext
from topiarist.recover.recipe import TrainingRecipe
from topiarist.recover.train import Row, device_of, to_device, train
from topiarist.recover.wiring import wiring

_TARGETS: Mapping[str, Callable[..., Tensor]] = {
    "gaussian": torch.randn,
    "binomial": lambda shape, generator: torch.randint(2, shape, generator=generator).float(),
    "constant": lambda shape, generator: torch.ones(shape),
}


@dataclass(frozen=True)
class NoiseOutputs:
    """Train by ``recipe`` with ``num`` more outputs on the last hidden layer, whose targets are noise; they go after.

    Babaeizadeh, Smaragdis, Campbell 2016, arXiv:1611.06211: loss + mean square error of the noise outputs. Noise cannot
    be told from the input, so that the best they can learn is its mean; hidden units then vary together, and one can
    stand in for another (`topiarist.saliency.Correlated`). ``targets`` are drawn anew for every batch: ``"gaussian"``
    N(0, 1), ``"binomial"`` 0 or 1, ``"constant"`` 1. The last hidden layer is what the last product with a weight
    takes in.

    Raises:
        InputError: no such targets, or fewer than one output; when called, no data or loss, or no product with a
            weight.
    """

    recipe: TrainingRecipe = field(default_factory=lambda: TrainingRecipe(epochs=1, lr=0.01))
    num: int = 64
    targets: str = "gaussian"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.targets not in _TARGETS:
            raise InputError(f"no noise is called {self.targets!r} ({nearest(self.targets, _TARGETS)})")
        if self.num < 1:
            raise InputError(f"there is 1 noise output or more, got {self.num!r}")

    def __call__(self, model: nn.Module, context: RecoveryContext) -> list[Row]:
        """Train ``model`` in place."""
        data, loss = context.training(self)
        generator = torch.Generator().manual_seed(self.seed)
        inputs = to_device(as_batch(first_batch(data))[0], device_of(model))
        with_noise = WithNoise(model, inputs, self.num, generator)

        def both(outputs: Sequence[Any], targets: Any) -> Tensor:
            task, noise = outputs
            wanted = _TARGETS[self.targets](noise.shape, generator=generator)
            return loss(task, targets) + F.mse_loss(noise, wanted.to(noise))

        return train(with_noise, data, both, self.recipe, on_step=context.progress)


class WithNoise(nn.Module):
    """A model and a linear head on what its last product with a weight takes in; returns what both give.

    Raises:
        InputError: there is no such product.
    """

    def __init__(self, model: nn.Module, inputs: Any, num: int, generator: torch.Generator) -> None:
        super().__init__()
        sites = wiring(model, inputs)
        if not sites:
            raise InputError(f"{type(model).__name__} multiplies nothing by a weight: there is no hidden layer")
        self.model, self._site = model, sites[-1]
        weight = self._weight
        self._num_in = weight.shape[self._site.in_dim]
        head = torch.randn(num, self._num_in, generator=generator) * self._num_in**-0.5
        self.head = nn.Parameter(head.to(weight))

    @property
    def _weight(self) -> Tensor:
        return dict(self.model.named_parameters(remove_duplicate=False))[self._site.weight]

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
        """The model's outputs, and (…, num) noise outputs."""
        with _TakenIn(self._weight) as taken:
            outputs = self.model(*args, **kwargs)
        if not taken.inputs:
            raise InputError(f"nothing is seen to be multiplied by {self._site.weight!r}: there is no hidden layer")
        hidden = taken.inputs[-1]
        hidden = hidden if hidden.shape[-1] == self._num_in else hidden.movedim(1, -1)  # a convolution's channels
        return outputs, hidden @ self.head.mT


class _TakenIn(TorchFunctionMode):
    """Remembers what is multiplied by one weight, where autograd still follows it."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self._weight = weight
        self.inputs: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [a for a in args if isinstance(a, Tensor)]
        others = [a for a in tensors if a is not self._weight and a._base is not self._weight]  # a view, such as wᵀ
        if len(others) < len(tensors):
            self.inputs += [a for a in others if a.dim() > 1][:1]
        return func(*args, **(kwargs or {}))
