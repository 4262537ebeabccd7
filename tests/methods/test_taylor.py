"""Taylor: |ΔL| itself where the loss is linear in the gates, and pruning before, during and after training."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import topiarist
from topiarist.errors import InputError
from topiarist.methods import taylor

HALF = topiarist.Budget(sparsity=0.5)


@pytest.mark.parametrize("criterion", ["2016", "2019", 2016])
def test_where_the_loss_is_linear_the_units_of_smallest_change_go(criterion):
    """Each unit removed by hand: with one example and a linear loss both criteria rank by |ΔL|."""
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 1)).double()
    x = torch.randn(1, 3).double()
    with torch.no_grad():
        net[0].bias += 3  # all units are active
        changes = []
        for unit in range(6):
            column = net[2].weight[:, unit].clone()
            before = float(net(x).sum())
            net[2].weight[:, unit] = 0
            changes.append(abs(float(net(x).sum()) - before))
            net[2].weight[:, unit] = column
    given = {"data": [(x, None)], "loss": lambda y, _: y.sum(), "recover": "none", "steps": 1}
    plan = taylor(net, x, criterion=criterion, budget=HALF, **given).plan
    expected = sorted(sorted(range(6), key=changes.__getitem__)[:3])
    assert plan.removed["0.weight:0"].nonzero().flatten().tolist() == expected


@pytest.mark.parametrize("when", ["before", "during", "after"])
def test_it_prunes_before_during_and_after_training(points, when):
    net = points.net
    if when != "after":
        net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))
    result = taylor(net, points.x, when=when, budget=HALF, **points.told)
    assert result.plan.achieved["sparsity"] == 0.5
    assert result.verification.passed
    assert result.curve[-1]["accuracy"] > 0.9
    assert len(result.curve) == {"before": 1, "after": 10}.get(when, len(result.curve))
    if when == "during":
        assert len(result.history) == 4 * len(points.data)
        assert len(result.curve) > 3


def test_refusals(points):
    with pytest.raises(InputError, match="nearest: 2019"):
        taylor(points.net, points.x, criterion="2018", budget=HALF, **points.told)
    with pytest.raises(InputError, match="nearest: after"):
        taylor(points.net, points.x, when="later", budget=HALF, **points.told)
    with pytest.raises(InputError, match="before training"):
        taylor(points.net, points.x, when="before", budget=HALF, data=points.data, loss=points.told["loss"])
