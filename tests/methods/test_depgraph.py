"""DepGraph: the pressure of its formula while it trains, the order of group norms, and steps to the budget (F12)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from topiarist import Budget
from topiarist.methods import depgraph
from topiarist.recover import TrainingRecipe, train


class Residual(nn.Module):
    """A stream of six channels that three layers share, with batch norms."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.one, self.two = nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        x = torch.relu(self.bn(self.stem(x)))
        x = x + self.two(torch.relu(self.one(x)))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def images():
    x = torch.randn(16, 1, 6, 6)
    return [(x, (x.mean((1, 2, 3)) > 0).long())]


def importance(net):
    """Mean squared norm over all that shares the stream's axis, over its mean: NumPy, by hand."""
    t = {name: p.detach().numpy() for name, p in net.named_parameters()}
    parts = [
        (t["stem.weight"] ** 2).sum((1, 2, 3)), t["bn.weight"] ** 2, t["bn.bias"] ** 2,
        (t["one.weight"] ** 2).sum((0, 2, 3)), (t["two.weight"] ** 2).sum((1, 2, 3)), t["two.bias"] ** 2,
        (t["head.weight"] ** 2).sum(0),
    ]  # fmt: skip
    mean = np.mean(parts, 0)
    return mean / mean.mean()


def test_the_groups_of_lowest_norm_go(images):
    net = Residual()
    result = depgraph(net, images[0][0], steps=1, strength=0.0, recover="none", budget=Budget(macs=0.6))
    gone = result.plan.removed["stem.weight:0"].numpy()
    expected = importance(net)
    assert gone.any()
    assert expected[gone].max() < expected[~gone].min()
    assert result.verification.passed
    assert result.plan.achieved["macs"] <= 0.6


def test_the_pressure_is_added_to_the_gradients_of_its_training(images):
    """One step of SGD without loss: w − η λ γ_k w, γ from 1 for the most important channel to 16 for the least."""
    net = Residual()
    recipe = TrainingRecipe(epochs=1, lr=1.0, momentum=0.0)
    told = {"data": images, "loss": lambda out, y: 0 * out.sum(), "recipe": recipe, "recover": "none"}
    result = depgraph(net, images[0][0], strength=1e-3, steps=1, budget=Budget(sparsity=0.0), **told)
    mean = importance(net)
    gamma = 2 ** (4 * (mean.max() - mean) / (mean.max() - mean.min()))
    expected = net.bn.weight.detach().numpy() * (1 - 1e-3 * gamma)
    np.testing.assert_allclose(result.model.bn.weight.detach().numpy(), expected, rtol=1e-5)
    assert gamma.min() == 1
    assert gamma.max() == 16
    plain = depgraph(net, images[0][0], strength=0.0, steps=1, budget=Budget(sparsity=0.0), **told)  # sabotaged
    assert torch.equal(plain.model.bn.weight, net.bn.weight)


def test_the_training_makes_groups_sparser_and_recovery_comes_last(images):
    net, recipe = Residual(), TrainingRecipe(epochs=30, lr=0.05)
    told = {"data": images, "loss": F.cross_entropy, "recipe": recipe, "budget": Budget(macs=0.5), "steps": 3}
    pressed = depgraph(net, images[0][0], strength=0.05, **told)
    work = Residual()
    work.load_state_dict(net.state_dict())
    train(work, images, F.cross_entropy, recipe)
    assert [row["step"] for row in pressed.history].count(0) == 30
    assert {row["step"] for row in pressed.history} == {0, 3}
    assert len(pressed.curve) == 3
    free = depgraph(work, images[0][0], strength=0.0, recover="none", budget=told["budget"], steps=3)
    assert free.verification.passed
    kept = [float(m.stem.weight.detach().norm() + m.one.weight.detach().norm()) for m in (pressed.model, free.model)]
    assert kept[0] < kept[1]
