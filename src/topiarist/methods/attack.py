"""Adversarial examples by projected gradient ascent (Madry et al. 2018), and how far they distort features."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from topiarist.errors import InputError
from topiarist.inputs import as_batch
from topiarist.planning import Loss
from topiarist.recover.train import device_of, to_device
from topiarist.stats.preserve import preserved

Masking = Callable[[str, Tensor], Tensor]  # the name of a layer and what it reads → what is kept of that
_PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _whole(name: str, features: Tensor) -> Tensor:
    return features


@dataclass(frozen=True)
class PGD:
    """x̃ ← Π(x̃ + η sign ∇L(x̃)), ``num_steps`` times, Π onto ‖x̃ − x‖_∞ ≤ ε and the range of inputs.

    It starts at random in the ball, or at x with ``random_start=False`` (Madry et al. 2018). ``bounds`` are the least
    and the largest number of an input; None takes those of the batch, which is right where a batch has a black and a
    white pixel. The model is attacked in the mode it is in; its parameters, their gradients and its buffers stay.

    Raises:
        InputError: ε or η is negative, or fewer than no steps; when called, inputs that are no floats.

    Example:
        >>> attack = PGD(epsilon=0.1, step_size=0.1, num_steps=1, bounds=(0, 1), random_start=False)
        >>> x = torch.tensor([[0.5, 0.95]])
        >>> attack(nn.Identity(), x, None, lambda out, _: out.sum())
        tensor([[0.6000, 1.0000]])
    """

    epsilon: float = 0.3
    step_size: float = 0.01
    num_steps: int = 20
    bounds: tuple[float, float] | None = None
    random_start: bool = True

    def __post_init__(self) -> None:
        if not (self.epsilon >= 0 and self.step_size >= 0 and self.num_steps >= 0):
            raise InputError(f"an attack has ε, a step and a number of steps of 0 or more, got {self}")

    def __call__(self, model: nn.Module, inputs: Any, targets: Any, loss: Loss) -> Tensor:
        """The adversarial examples of a batch, of the shape of ``inputs``."""
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            raise InputError(f"an attack moves inputs that are a tensor of floats, got {type(inputs).__name__}")
        low, high = self.bounds or (float(inputs.min()), float(inputs.max()))
        around = (inputs - self.epsilon).clamp(low, high), (inputs + self.epsilon).clamp(low, high)
        start = (2 * torch.rand_like(inputs) - 1) * self.epsilon if self.random_start else torch.zeros_like(inputs)
        x = (inputs + start).clamp(*around)
        with _buffers_kept(model), torch.enable_grad():
            for _ in range(self.num_steps):
                x.requires_grad_(True)
                (slope,) = torch.autograd.grad(loss(model(x), targets), x)
                x = (x.detach() + self.step_size * slope.sign()).clamp(*around)
        return x.detach()


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    held = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, value in held:
            buffer.copy_(value)


@dataclass(frozen=True)
class Robustness:
    """Over a data set: the fraction of targets hit, ``clean`` and under ``attack``, and the mean ``vulnerability``."""

    clean: float
    attack: float
    vulnerability: float


def robustness(model: nn.Module, data: Iterable[Any], attack: PGD, loss: Loss, mask: Masking = _whole) -> Robustness:
    """How ``model`` fares against ``attack`` in evaluation mode, and how far its features move (see `features_of`).

    Raises:
        InputError: there is no data.
    """
    hits, moved, num = torch.zeros(2), 0.0, 0
    with preserved(model):
        model.eval()
        for batch in data:
            inputs, targets = to_device(as_batch(batch), device_of(model))
            x = attack(model, inputs, targets, loss)
            with torch.no_grad(), features_of(model, mask) as seen:
                outputs = model(torch.cat((inputs, x))).chunk(2)
            hits += torch.stack([(out.argmax(1) == targets).sum() for out in outputs]).cpu()
            moved += float(vulnerability(seen)) * len(targets)
            num += len(targets)
    if not num:
        raise InputError("robustness is measured on data, which yields no batch")
    return Robustness(float(hits[0]) / num, float(hits[1]) / num, moved / num)


def vulnerability(features: dict[str, Tensor]) -> Tensor:
    """V = (1 / layers) Σ_l mean |z_l(x) − z_l(x̃)|, of features whose first half is of x, the other of x̃, a scalar.

    Source: Madaan, Shin, Hwang 2020, "Adversarial neural pruning with latent vulnerability suppression".

    Example:
        >>> vulnerability({"fc": torch.tensor([[1.0, 2.0], [1.0, 5.0]])})
        tensor(1.5000)
    """
    if not features:
        return torch.zeros(())
    return torch.stack(
        [(clean - moved).abs().mean() for clean, moved in (f.chunk(2) for f in features.values())]
    ).mean()


@contextmanager
def features_of(model: nn.Module, mask: Masking = _whole) -> Iterator[dict[str, Tensor]]:
    """Inside the ``with``, what each linear layer and convolution but the first has read last, by its name.

    That is what the layers before it have made of the input. ``mask(name, x)`` is what is kept of it: vulnerability is
    measured after masking, or features that are gone would count.
    """
    seen: dict[str, Tensor] = {}
    order: dict[str, None] = {}

    def keep(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            order.setdefault(name)
            if name != next(iter(order)):
                seen[name] = mask(name, args[0])

        return hook

    found = [(name, module) for name, module in model.named_modules() if isinstance(module, _PRODUCTS)]
    handles = [module.register_forward_pre_hook(keep(name)) for name, module in found]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
