"""Optimal Brain Damage and Surgeon: exact cases, least squares on what is left, and rounds that train."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import topiarist
from topiarist.methods import magnitude, optimal_brain_damage, optimal_brain_surgeon


def fitted(x: torch.Tensor, y: torch.Tensor) -> nn.Linear:
    """A linear map at the minimum of its mean square error."""
    net = nn.Linear(x.shape[1], 1, bias=False).double()
    with torch.no_grad():
        net.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
    return net


def half_square(y: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return (y - wanted).square().sum(1).mean() / 2


def test_of_two_weights_the_surgeon_removes_one_and_moves_the_other():
    """H = [[2, 1], [1, 2]], w = (1, 2): the first goes, the second becomes 2.5, the loss rises by 0.75."""
    root = torch.linalg.cholesky(torch.tensor([[2.0, 1.0], [1.0, 2.0]]).double()).T
    x = root * 2**0.5  # E x xᵀ = H over two examples
    net = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 2.0]]))
    data = [(x, net(x).detach())]
    given = {"data": data, "loss": half_square, "budget": topiarist.Budget(sparsity=0.5)}
    small = optimal_brain_surgeon(net, x[:1], damping=1e-12, steps=1, **given).model
    torch.testing.assert_close(small.weight, torch.tensor([[0.0, 2.5]]).double(), rtol=0, atol=1e-9)
    assert float(half_square(small(x), data[0][1]).detach()) == pytest.approx(0.75, abs=1e-9)
    plain = optimal_brain_damage(net, x[:1], recover="none", **given).model
    assert plain.weight.tolist() == [[0.0, 2.0]]


def test_the_surgeon_ends_at_the_least_squares_on_what_is_left():
    x = torch.randn(60, 8).double()
    y = x @ torch.randn(8, 1).double() + 0.1 * torch.randn(60, 1).double()
    net = fitted(x, y)
    given = {"data": [(x, y)], "loss": half_square, "budget": topiarist.Budget(sparsity=0.5)}
    result = optimal_brain_surgeon(net, x[:1], damping=1e-12, steps=4, **given)
    left = (~result.plan.removed["weight"]).numpy()
    expected = np.linalg.lstsq(x.numpy()[:, left], y.numpy(), rcond=None)[0][:, 0]
    np.testing.assert_allclose(result.model.weight.detach().numpy()[0, left], expected, atol=1e-8)
    assert [row["step"] for row in result.curve] == [1, 2, 3, 4]


def test_damage_looks_at_inputs_where_magnitude_does_not():
    """The larger weight reads an input that is nearly always zero: ½ h w² with h = E x² is smaller there."""
    x = torch.tensor([[3.0, 0.1], [-3.0, 0.1]]).double()
    net = nn.Linear(2, 1, bias=False).double()
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 2.0]]))
    given = {"data": [(x, net(x).detach())], "loss": half_square, "recover": "none"}
    half = topiarist.Budget(sparsity=0.5)
    assert optimal_brain_damage(net, x[:1], budget=half, **given).plan.removed["weight"].tolist() == [False, True]
    assert magnitude(net, x[:1], budget=half, recover="none").plan.removed["weight"].tolist() == [True, False]


def test_surgeon_before_damage_before_magnitude_at_a_minimum():
    """A tanh network of 65 weights at its minimum, 15 removed one by one: the quadratic model pays (damping 1e-2)."""
    torch.manual_seed(3)
    x = torch.randn(200, 6).double()
    teacher = nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    y = teacher(x).detach()
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = F.mse_loss(net(x), y) + 1e-4 * sum(p.square().sum() for p in net.parameters())
        value.backward()
        return value

    optimizer.step(closure)
    budget = topiarist.Budget(sparsity=15 / 56)
    given = {"data": [(x, y)], "loss": F.mse_loss, "budget": budget, "recover": "none"}
    stepwise = {"schedule": "linear", "steps": 15}
    nets = [
        optimal_brain_surgeon(net, x[:1], damping=1e-3, relative=False, **{**given, "steps": 15}).model,
        optimal_brain_damage(net, x[:1], **given, **stepwise).model,
        magnitude(net, x[:1], budget=budget, recover="none").model,
    ]
    losses = [float(F.mse_loss(small(x), y).detach()) for small in nets]
    assert losses[0] < losses[1]
    assert losses[0] < losses[2]


def test_damage_goes_round_by_round_and_trains(points):
    result = optimal_brain_damage(
        points.net, points.x, fraction=0.3, budget=topiarist.Budget(sparsity=0.6), **points.told
    )
    removed = [row["sparsity"] for row in result.curve]
    assert removed[:2] == pytest.approx([0.3, 0.51], abs=0.005)
    assert removed[-1] == pytest.approx(0.6, abs=0.005)
    assert result.curve[-1]["accuracy"] > 0.9
