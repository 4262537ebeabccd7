"""SparseGPT, OBC and Wanda as whole methods: the order of their errors, exact patterns, least squares (F7, F8)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import topiarist
from topiarist import Budget
from topiarist.methods import magnitude, sparsegpt, wanda
from topiarist.saliency import OBC, SparseGPT, told

HALF = Budget(sparsity=0.5)


@pytest.fixture
def layer():
    """64 × 128 weights, and inputs whose channels are correlated and of very different size."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(128, 128, generator=generator, dtype=torch.float64)
    mix *= torch.logspace(0, -1.5, 128, dtype=torch.float64)[:, None]
    x = torch.randn(512, 128, generator=generator, dtype=torch.float64) @ mix
    x *= torch.logspace(0, 1, 128, dtype=torch.float64)[torch.randperm(128, generator=generator)]
    return nn.Linear(128, 64, bias=False).double(), x


def error(result, layer, x):
    with torch.no_grad():
        return float((result.model(x) - layer(x)).square().sum() / layer(x).square().sum())


@pytest.mark.parametrize("structure", ["weight", "2:4"])
def test_the_published_order_of_errors(layer, structure):
    net, x = layer
    budget = HALF if structure == "weight" else None
    options = {"data": [x], "structure": structure, "budget": budget}
    plain = topiarist.prune(net, x[:1], structure=structure, allocation="uniform", budget=budget)
    found = [
        error(plain, net, x),
        error(wanda(net, x[:1], **options), net, x),
        error(sparsegpt(net, x[:1], **options), net, x),
        error(sparsegpt(net, x[:1], exact=True, **options), net, x),
    ]
    assert found == sorted(found, reverse=True)
    assert found[1] < 0.8 * found[0]
    assert found[2] < 0.8 * found[1]


@pytest.mark.parametrize("criterion", ["sparsegpt", "obc", SparseGPT(), OBC()])
def test_the_pattern_of_the_structure_is_told_to_the_criterion(layer, criterion):
    """Without a word about it: two of every four stay, and those that the criterion chooses by itself."""
    net, x = layer
    options = {"structure": "2:4", "data": [x]}
    result = topiarist.prune(net, x[:1], saliency=criterion, **options)
    assert (result.model.weight.view(64, 32, 4) != 0).sum(2).unique().tolist() == [2]
    explicit = type(told(topiarist.saliency.resolve(criterion), None))(pattern="2:4")
    assert topiarist.prune(net, x[:1], saliency=explicit, **options).plan == result.plan
    assert topiarist.plan(net, x[:1], saliency=criterion, **options) == result.plan
    kept = told(type(explicit)(pattern="4:8"), "2:4")  # what the user says stays
    assert kept.pattern == "4:8"
    assert told(explicit, None) is explicit
    sabotaged = topiarist.prune(net, x[:1], structure="2:4", saliency=kept, data=[x]).plan
    assert sabotaged != result.plan


def test_after_obc_what_is_left_is_least_squares(layer):
    net, x = layer
    result = sparsegpt(net, x[:1], data=[x], budget=HALF, exact=True, damping=0.0)
    gram, target = x.T @ x, net.weight.detach() @ x.T @ x
    for row in (0, 31):
        stays = result.model.weight[row] != 0
        expected = torch.linalg.solve(gram[stays][:, stays], target[row, stays])
        torch.testing.assert_close(result.model.weight[row, stays].detach(), expected, rtol=1e-6, atol=1e-9)


def test_uncorrelated_inputs_of_one_size_leave_magnitude(layer):
    net, _ = layer
    x = torch.linalg.qr(torch.randn(128, 128, dtype=torch.float64)).Q * 7
    by_size = magnitude(net, x[:1], scope="layer", recover="none", budget=HALF).plan
    assert sparsegpt(net, x[:1], data=[x], budget=HALF).plan == by_size
    within = net.weight.detach().abs() < net.weight.detach().abs().sort(1).values[:, 64:65]
    assert torch.equal(wanda(net, x[:1], data=[x], budget=HALF).plan.removed["weight"], within.flatten())


def test_wanda_takes_the_same_number_of_every_row_and_does_not_see_a_change_of_scale(layer):
    net, x = layer
    plan = wanda(net, x[:1], data=[x], budget=Budget(sparsity=0.3)).plan
    rows = plan.removed["weight"].view(64, 128).sum(1)
    assert set(rows.tolist()) <= {38, 39}
    scaled = nn.Linear(128, 64, bias=False).double()
    scale = torch.logspace(-1, 1, 128, dtype=torch.float64)
    with torch.no_grad():
        scaled.weight.copy_(net.weight / scale)
    assert wanda(scaled, x[:1], data=[x * scale], budget=Budget(sparsity=0.3)).plan == plan


def test_layers_see_what_those_before_them_leave():
    net, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)), torch.randn(64, 8)
    for method in (wanda, sparsegpt):
        turn, at_once = (method(net, x[:1], data=[x], budget=HALF, sequential=s) for s in (True, False))
        assert torch.equal(turn.plan.removed["0.weight"], at_once.plan.removed["0.weight"])
        assert [int(g.sum()) for g in turn.plan.removed.values()] == [64, 64]
