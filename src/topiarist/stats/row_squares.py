"""Squares of single examples' gradients, added up; for linear layers and convolutions without one gradient each.

The gradient of example n by a linear layer's weight is δ_n x_nᵀ, and its squares are those of δ_n and x_n: summed over
examples, a product of two matrices. What other parameters get is squared row by row.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from topiarist.inputs import call
from topiarist.stats.examples import flat_outputs, rows
from topiarist.stats.statistic import Batch
from topiarist.stats.uses import Use, Window

_ELEMENTS = 1 << 24  # of gradients of single examples held at a time
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def row_squares(batch: Batch, cotangents: Tensor) -> dict[str, Tensor]:
    """Σ_n Σ_r (J_nᵀ v_nr)² for the Jacobian J_n of example n, by parameter.

    Args:
        cotangents: v, (examples, rank, outputs).
    """
    found = _of_layers(batch, cotangents)
    left = [name for name in batch.subject.parameters if name not in found]
    for chunk in rows(batch, cotangents, left) if left else ():
        for name, gradients in chunk.items():
            found[name] = found.get(name, 0) + gradients.square().sum((0, 1))
    return found


@dataclass(eq=False)
class _Layer:
    """A layer that has run once: the names of its parameters, its inputs and what it returned."""

    module: Any
    weight: str
    bias: str | None
    calls: int = 0
    inputs: Tensor | None = None
    output: Tensor | None = None

    def gradients(self, delta: Tensor) -> Iterator[Tensor]:
        """∂/∂ weight of each example, (examples, *shape), some examples at a time; ``delta``: ∂/∂ output."""
        assert self.inputs is not None  # noqa: S101 it has run
        weight: Tensor = self.module.weight
        step = max(1, _ELEMENTS // weight.numel())
        for x, d in zip(torch.split(self.inputs, step), torch.split(delta, step), strict=True):
            product = torch.einsum("npgo,npgk->ngok", *self._factors(x, d))
            yield product.reshape(len(x), *weight.shape)

    def squares(self, delta: Tensor) -> Tensor:
        """Σ_n of their squares."""
        if self.inputs is not None and self.inputs.dim() == 2 and isinstance(self.module, nn.Linear):
            return delta.square().T @ self.inputs.square()
        return torch.stack([part.square().sum(0) for part in self.gradients(delta)]).sum(0)

    def bias_squares(self, delta: Tensor) -> Tensor:
        """The same of the bias."""
        over = tuple(range(1, delta.dim() - 1)) if isinstance(self.module, nn.Linear) else tuple(range(2, delta.dim()))
        return (delta.sum(over) if over else delta).square().sum(0)

    def _factors(self, x: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """∂/∂ outputs and inputs, (examples, positions, groups, features), the inputs as the weight lies."""
        if isinstance(self.module, nn.Linear):
            return delta.reshape(len(x), -1, 1, delta.shape[-1]), x.reshape(len(x), -1, 1, x.shape[-1])
        m = self.module
        window = Window(m.kernel_size, m.stride, m.padding, m.dilation, m.groups, transposed=False)
        patches = Use(self.weight, 1, x, window).rows()
        outer = delta.flatten(2).mT.reshape(len(x), -1, m.groups, delta.shape[1] // m.groups)
        return outer, patches.reshape(len(x), -1, *patches.shape[1:])


def _of_layers(batch: Batch, cotangents: Tensor) -> dict[str, Tensor]:
    """The sums for the parameters of linear layers and convolutions that run once and are used nowhere else."""
    layers = list(_candidates(batch))
    with torch.enable_grad(), _watched(layers):
        outputs = flat_outputs(call(batch.subject.model, batch.inputs), batch.size)
    layers = [layer for layer in layers if layer.calls == 1 and layer.output is not None]
    layers = _by_example(layers, outputs, cotangents[:, 0])
    found: dict[str, Tensor] = {}
    for r in range(cotangents.shape[1] if layers else 0):
        deltas = _pulled(outputs, [layer.output for layer in layers], cotangents[:, r])
        if r == 0:
            weights = _pulled(outputs, [layer.module.weight for layer in layers], cotangents[:, r])
            alone = [_is_alone(*each) for each in zip(layers, deltas, weights, strict=True)]
        for layer, delta, counts in zip(layers, deltas, alone, strict=True):
            if counts:
                found[layer.weight] = found.get(layer.weight, 0) + layer.squares(delta)
                if layer.bias is not None:
                    found[layer.bias] = found.get(layer.bias, 0) + layer.bias_squares(delta)
    return found


def _by_example(layers: list[_Layer], outputs: Tensor, cotangent: Tensor) -> list[_Layer]:
    """The layers in which row n is example n: of the first example's outputs, no other row has a part.

    Elsewhere rows are tokens, or windows, of which several belong to one example, whose gradient is their sum; or
    examples see each other.
    """
    first = torch.zeros_like(cotangent)
    first[0] = cotangent[0]
    whole = [layer for layer in layers if layer.inputs is not None and layer.inputs.dim() > 1]
    whole = [layer for layer in whole if layer.inputs is not None and len(layer.inputs) == len(outputs)]
    deltas = _pulled(outputs, [layer.output for layer in whole], first) if whole else []
    return [layer for layer, delta in zip(whole, deltas, strict=True) if not bool(delta[1:].any())]


def _candidates(batch: Batch) -> Iterator[_Layer]:
    named = batch.subject.model.named_parameters(remove_duplicate=False)
    names: dict[int, list[str]] = {}
    for name, parameter in named:
        names.setdefault(id(parameter), []).append(name)
    for module in batch.subject.model.modules():
        if type(module) not in _LAYERS or not _pads_with_zeros(module):
            continue
        own = [names.get(id(p), []) for p in (module.weight, module.bias) if p is not None]
        if all(len(n) == 1 and n[0] in batch.subject.parameters for n in own):
            yield _Layer(module, own[0][0], own[1][0] if len(own) == 2 else None)


def _pads_with_zeros(module: nn.Module) -> bool:
    return getattr(module, "padding_mode", "zeros") == "zeros" and not isinstance(getattr(module, "padding", 0), str)


@contextmanager
def _watched(layers: list[_Layer]) -> Iterator[None]:
    """Inside the ``with``, layers note what they are given and return a copy, for others to change in place."""

    def note(layer: _Layer, module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        layer.calls += 1
        if len(args) == 1 and isinstance(out, Tensor) and out.requires_grad:
            layer.inputs, layer.output = args[0].detach(), out
        return out.clone()

    handles = [layer.module.register_forward_hook(partial(note, layer)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_alone(layer: _Layer, delta: Tensor, gradient: Tensor) -> bool:
    """Whether the gradient of a weight is all from where its layer ran: it may be used elsewhere as well."""
    return _are_close(torch.stack([part.sum(0) for part in layer.gradients(delta)]).sum(0), gradient)


def _are_close(a: Tensor, b: Tensor) -> bool:
    """Equal but for rounding; where sums cancel this may fail, and what fails is done the slow way."""
    return bool((a - b).abs().max() <= 2**10 * torch.finfo(a.dtype).eps * b.abs().max())


def _pulled(outputs: Tensor, by: list[Any], cotangent: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(outputs, by, cotangent, retain_graph=True, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(by, found, strict=True)]
