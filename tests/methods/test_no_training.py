"""No training: labels and gradients are not touched, and what can be repaired is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from topiarist import Budget
from topiarist.methods import no_training


def redundant():
    """Twelve hidden channels that are combinations of four: eight can go without any loss."""
    net = nn.Sequential(nn.Linear(6, 12), nn.Identity(), nn.Linear(12, 5)).double()
    with torch.no_grad():
        mix = torch.randn(12, 4).double()
        net[0].weight.copy_(mix @ torch.randn(4, 6).double())
        net[0].bias.copy_(mix @ torch.randn(4).double())
    return net


def test_what_is_redundant_is_repaired_exactly_from_inputs_alone(monkeypatch):
    net, x = redundant(), torch.randn(300, 6, dtype=torch.float64)
    monkeypatch.setattr(torch.Tensor, "backward", lambda *a, **k: pytest.fail("a gradient"))
    options = {"data": [x[:150], x[150:]], "budget": Budget(sparsity=0.5)}
    errors = [
        float((no_training(net, x[:1], recover=r, **options).model(x) - net(x)).detach().square().mean())
        for r in ("none", "no-training")
    ]
    assert errors[0] > 0.01  # the sabotaged twin
    assert errors[1] < 1e-6 * errors[0]


def test_it_is_never_worse_than_the_cut():
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten(), nn.Linear(96, 4)
    )
    x = torch.randn(64, 1, 8, 8)
    result = no_training(net.eval(), x[:1], data=[x], budget=Budget(macs=0.5))
    last = result.history[-1]
    assert last["loss"] <= last["before"]
    assert result.verification.passed
    assert result.plan.achieved["macs"] <= 0.5
