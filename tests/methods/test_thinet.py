"""ThiNet: opposite twins go first and cost nothing, layers see what those before have left, scales never hurt."""

from __future__ import annotations

import torch
from torch import nn

import topiarist
from topiarist.methods import thinet
from topiarist.recover import FineTune, TrainingRecipe

HALF = topiarist.Budget(sparsity=0.5)


def opposed() -> nn.Sequential:
    """Units 1 and 2 are alike and their consumers take opposite parts: together they say nothing, loudly."""
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        net[0].weight[1] *= 20
        net[2].weight[:, 1] /= 100  # greedy begins with the unit that says least by itself
        net[0].weight[2], net[0].bias[2] = net[0].weight[1], net[0].bias[1]
        net[2].weight[:, 2] = -net[2].weight[:, 1]
    return net


def test_opposite_twins_go_first_and_cost_nothing():
    net, x = opposed(), torch.randn(50, 3).double()
    result = thinet(net, x[:1], data=[x], budget=HALF, recover="none")
    assert result.plan.removed["0.weight:0"].tolist() == [False, True, True, False]
    torch.testing.assert_close(result.model(x), net(x), rtol=0, atol=1e-12)
    sabotaged = topiarist.prune(net, x[:1], structure="channel", saliency="l2", allocation="uniform", budget=HALF)
    assert float((sabotaged.model(x) - net(x)).detach().abs().max()) > 1e-3


def test_least_squares_never_make_the_next_layer_worse(points):
    """Against the same choice without it, on the product that reads the cut layer."""
    x = points.inputs
    plan = topiarist.plan(points.net, points.x, structure="channel", saliency="thinet", allocation={"0": 0.5}, data=[x])
    plain = topiarist.shrink(points.net, plan, points.x)
    mended = thinet(points.net, points.x, data=[x], allocation={"0": 0.5}, recover="none")
    assert mended.plan == plan
    errors = [float((net[:3](x) - points.net[:3](x)).detach().square().sum()) for net in (mended.model, plain)]
    assert errors[0] < errors[1]


def test_each_layer_is_followed_by_its_own_training(points):
    each = FineTune(TrainingRecipe(epochs=1, lr=0.01))
    result = thinet(points.net, points.x, budget=HALF, each=each, recover=each, **points.told)
    assert len(result.history) == 3 * len(points.data)  # two layers, and once more at the end
    assert result.curve[-1]["accuracy"] > 0.9
    assert result.verification.passed
