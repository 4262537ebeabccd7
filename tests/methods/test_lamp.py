"""LAMP: golden values, invariance to the scale of layers, and never an empty layer (METHODS F4)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from topiarist import Budget
from topiarist.methods import lamp, magnitude


@pytest.mark.parametrize("sparsity", [1 / 6, 0.5])
def test_golden_values(sparsity):
    """|w| = (1, 2, 3) has the scores 1/14, 4/13, 1; (10, 10, 10) has 1/3, 1/2, 1: what goes is 1/14, then 4/13, 1/3."""
    net = nn.Sequential(nn.Linear(3, 1, bias=False), nn.Linear(1, 3, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, -2.0, 3.0]]))
        net[1].weight.copy_(torch.tensor([[10.0], [-10.0], [10.0]]))
    plan = lamp(net, torch.zeros(1, 3), recover="none", budget=Budget(sparsity=sparsity)).plan
    expected = {1 / 6: ([True, False, False], [False] * 3), 0.5: ([True, True, False], [True, False, False])}
    assert tuple(gone.tolist() for gone in plan.removed.values()) == expected[sparsity]


def test_layers_may_be_scaled(mlp):
    model, x, budget = mlp(8, 12, 4), torch.zeros(1, 8).double(), Budget(sparsity=0.7)
    told = {"recover": "none", "budget": budget}
    before, by_size = lamp(model, x, **told).plan, magnitude(model, x, **told).plan
    with torch.no_grad():
        model[0].weight.mul_(100)
    assert lamp(model, x, **told).plan == before
    assert magnitude(model, x, **told).plan != by_size


def test_no_layer_is_emptied_and_rounds_train(trained, blobs):
    model, _ = trained
    told = {"data": blobs, "loss": nn.functional.cross_entropy, "schedule": "exponential", "steps": 4}
    result = lamp(model, blobs[0][0], budget=Budget(sparsity=0.98), **told)
    assert min(int((~gone).sum()) for gone in result.plan.removed.values()) >= 1
    density = [1 - row["sparsity"] for row in result.curve]
    assert density == pytest.approx([0.02 ** (k / 4) for k in range(1, 5)], abs=2e-3)
    assert len(result.history) == 4 * len(blobs)
