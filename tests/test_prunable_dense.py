"""The masked dense layer: forward and gradient against NumPy, the four promises of a masked layer, folding."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from topiarist.errors import InputError
from topiarist.mask.dense import PrunableDense

Make = Callable[[Iterable[Tensor]], torch.optim.Optimizer]


def _layer(activation: nn.Module | None = None) -> tuple[PrunableDense, Tensor, Tensor]:
    torch.manual_seed(0)
    mask = torch.rand(3, 5) < 0.5
    layer = PrunableDense.from_linear(nn.Linear(5, 3, dtype=torch.float64), mask, activation)
    return layer, mask, torch.randn(7, 5, dtype=torch.float64)


class _GradientLeaks(PrunableDense):
    """The sabotaged twin: the forward pass is right, but the gradient reaches the removed weights."""

    def forward(self, x: Tensor) -> Tensor:
        masked = self.weight + (self.weight * self.mask - self.weight).detach()
        return torch.tanh(nn.functional.linear(x, masked, self.bias))


def _assert_gradient(layer: PrunableDense, mask: Tensor, x: Tensor) -> None:
    """For y = tanh((W⊙M)x + b) and L = Σ y²/2: δ = y(1 − y²), ∂L/∂W = (δᵀx)⊙M, ∂L/∂b = Σδ."""
    weight, bias, m = layer.weight.detach().numpy(), layer.bias.detach().numpy(), mask.numpy()
    y = np.tanh(x.numpy() @ (weight * m).T + bias)
    delta = y * (1 - y**2)
    out = layer(x)
    np.testing.assert_allclose(out.detach().numpy(), y, rtol=1e-12)
    (out**2 / 2).sum().backward()
    np.testing.assert_allclose(layer.weight.grad.numpy(), (delta.T @ x.numpy()) * m, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(layer.bias.grad.numpy(), delta.sum(0), rtol=1e-12)


def test_forward_and_gradient_against_numpy() -> None:
    _assert_gradient(*_layer(nn.Tanh()))


def test_the_gradient_oracle_catches_a_leak() -> None:
    layer, mask, x = _layer()
    layer.__class__ = _GradientLeaks
    with pytest.raises(AssertionError, match="Not equal"):
        _assert_gradient(layer, mask, x)


def test_gradient_against_finite_differences() -> None:
    layer, _, x = _layer(nn.Tanh())
    layer.weight.data = torch.randn_like(layer.weight)  # removed weights that are not zero have no influence either
    weights = (layer.weight.detach().requires_grad_(), layer.bias.detach().requires_grad_())

    def forward(weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(forward, weights)


@pytest.mark.parametrize("make", [
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    lambda p: torch.optim.Adam(p, lr=0.1),
    lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
])  # fmt: skip
@pytest.mark.parametrize("tell_optimizer", [True, False])
def test_removed_weights_stay_zero_when_the_optimizer_forgets_them(make: Make, tell_optimizer: bool) -> None:
    layer, mask, x = _layer(nn.Tanh())
    layer.set_mask(torch.ones_like(mask))
    optimizer = make(layer.parameters())

    def step() -> None:
        optimizer.zero_grad()
        (layer(x) - 1).square().sum().backward()
        optimizer.step()

    step()
    layer.set_mask(mask, optimizer if tell_optimizer else None)
    before = layer.weight.detach().clone()
    for _ in range(3):
        step()
    assert bool((layer.weight[mask] != before[mask]).any())
    assert bool((layer.weight[~mask] == 0).all()) is tell_optimizer  # without it, stale momentum is seen to leak


def test_mask_is_saved_copied_and_moved() -> None:
    layer, mask, x = _layer(nn.ReLU())
    state = layer.state_dict()
    assert set(state) == {"weight", "bias", "mask"}
    other = PrunableDense(5, 3, activation=nn.ReLU()).double()
    other.load_state_dict(state)
    assert torch.equal(other.mask, mask)
    assert torch.equal(other(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
    moved = layer.to("meta")
    assert moved.mask.is_meta
    assert moved.mask.dtype == torch.bool


@pytest.mark.parametrize("activation", [None, nn.Sigmoid()])
@pytest.mark.parametrize("bias", [True, False])
def test_fold_is_a_plain_layer_with_the_same_outputs(activation: nn.Module | None, bias: bool) -> None:
    torch.manual_seed(1)
    layer = PrunableDense(5, 3, bias=bias, activation=activation).double()
    layer.mask = torch.rand(3, 5) < 0.5  # behind set_mask's back: removed weights are not zero
    x = torch.randn(4, 5, dtype=torch.float64)
    folded = layer.fold()
    assert torch.equal(folded(x), layer(x))
    linear = folded if activation is None else folded[0]
    assert type(linear) is nn.Linear
    assert bool((linear.weight[~layer.mask] == 0).all())
    assert (linear.bias is not None) is bias


def test_from_linear_leaves_the_original_alone() -> None:
    linear = nn.Linear(4, 2)
    weight = linear.weight.detach().clone()
    layer = PrunableDense.from_linear(linear, torch.zeros(2, 4))
    assert torch.equal(linear.weight, weight)
    assert layer.sparsity == 1
    assert bool((layer.weight == 0).all())
    x = torch.randn(3, 4)
    assert torch.equal(PrunableDense.from_linear(linear)(x), linear(x))
    assert "sparsity=1" in repr(layer)


def test_bad_masks_are_refused() -> None:
    layer = PrunableDense(4, 2)
    weight = layer.weight.detach().clone()
    with pytest.raises(InputError, match="does not fit"):
        layer.set_mask(torch.ones(4, 2))
    for bad in (0.5, 2.0, float("nan")):
        with pytest.raises(InputError, match="only the values 0"):
            layer.set_mask(torch.full((2, 4), bad))
    assert torch.equal(layer.weight, weight)
    assert layer.sparsity == 0
