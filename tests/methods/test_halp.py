"""HALP: importance of gates, the best of all choices within a cost, also where the clock says it (METHODS F13)."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from topiarist import Budget
from topiarist.methods import halp
from topiarist.planning import Planner
from topiarist.saliency import Taylor, resolve
from topiarist.structure import Channel


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6),
        nn.ReLU(), nn.Conv2d(6, 5, 1, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3),
    ).eval()  # fmt: skip


@pytest.fixture
def data(net):
    batches = [(torch.randn(n, 1, 8, 8), torch.arange(n) % 3) for n in (6, 6, 6)]
    with torch.no_grad():
        for norm in (net[1], net[4], net[7]):
            norm.weight.uniform_(0.5, 1.5), norm.bias.uniform_(-0.5, 0.5)
    return batches


def importance(net, data):
    """|γ ∂L/∂γ + β ∂L/∂β| of each batch, the mean over batches."""
    found = []
    for norm in (net[1], net[4], net[7]):
        total = torch.zeros(norm.num_features)
        for x, y in data:
            loss = F.cross_entropy(net(x), y)
            gamma, beta = torch.autograd.grad(loss, [norm.weight, norm.bias])
            total += (norm.weight * gamma + norm.bias * beta).abs().detach()
        found.append(total / len(data))
    return found


def test_importance_is_that_of_the_scale_and_shift(net, data):
    planner = Planner.of(net, data[0][0][:1], Channel(), (), None)
    scores = planner.candidates(Taylor(per="change"), data, F.cross_entropy, {}).scores
    for found, expected in zip(scores.values(), importance(net, data), strict=True):
        torch.testing.assert_close(found.float(), expected, rtol=1e-4, atol=1e-7)
    assert resolve("taylor-change") == Taylor("change")
    squares = planner.candidates(Taylor(), data, F.cross_entropy, {}).scores  # another moment
    assert not any(torch.allclose(squares[name], found) for name, found in scores.items())


def test_the_choice_is_the_best_of_all_within_the_cost(net, data):
    """Brute force over the widths of three layers; costs are those of widths beside whole neighbours."""
    x = data[0][0][:1]
    planner = Planner.of(net, x, Channel(), (), None)
    whole = {u.name: u.num for u in planner.units}
    candidates = planner.candidates(Taylor(per="change"), data, F.cross_entropy, {})
    macs, names = candidates.costs["macs"], list(whole)
    best = [candidates.scores[n].sort(descending=True).values.cumsum(0) for n in names]

    def cost(widths):
        return sum(macs({**whole, n: k}) - macs({**whole, n: 1}) for n, k in zip(names, widths, strict=True))

    def worth(widths):
        return sum(float(b[k - 1]) for b, k in zip(best, widths, strict=True))

    plan = halp(net, x, data=data, loss=F.cross_entropy, recover="none", budget=Budget(macs=0.5)).plan
    chosen = tuple(int((~g).sum()) for g in plan.removed.values())
    every = itertools.product(*(range(1, n + 1) for n in whole.values()))
    reachable = [w for w in every if cost(w) <= cost(chosen) + 1e-9]
    assert worth(chosen) == pytest.approx(max(map(worth, reachable)), rel=1e-9)
    assert plan.achieved["macs"] <= 0.5
    equal = tuple(max(1, round(0.6 * n)) for n in whole.values())  # the sabotaged twin: the same share of each
    assert cost(equal) > cost(chosen) or worth(equal) < worth(chosen)


@pytest.mark.parametrize("unit", ["sparsity", "compression", "params"])
def test_other_units_cost_what_they_are(net, data, unit):
    value = {"sparsity": 0.4, "compression": 2.0, "params": 0.5}[unit]
    told = {"data": data, "loss": F.cross_entropy, "steps": 2}
    result = halp(net, data[0][0][:1], budget=Budget(**{unit: value}), **told)
    assert result.verification.passed
    assert len(result.curve) == 2
    reached = result.plan.achieved[unit]
    assert reached <= value if unit == "params" else reached >= value * 0.99


def test_a_budget_that_all_fits_in_keeps_all_and_latency_is_timed(net, data):
    told = {"data": data, "loss": F.cross_entropy, "recover": "none"}
    result = halp(net, data[0][0][:1], budget=Budget(latency_ms=10_000), **told)
    assert result.plan.num_removed == 0
    assert "latency_ms" in result.plan.achieved
