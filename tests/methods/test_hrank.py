"""HRank: the maps of lowest rank by NumPy, of each layer the fraction that is asked for."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import topiarist
from topiarist.methods import hrank


def test_the_channels_of_lowest_rank_go():
    """Channel 1 gives maps of rank one, constant ones; the others' are of full rank."""
    net = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(72, 2))
    images = torch.randn(8, 1, 8, 8)
    with torch.no_grad():
        net[0].weight[1] = 0.0
        net[0].bias[1] = 5.0
    with torch.no_grad():
        ranks = np.linalg.matrix_rank(net[0](images).numpy()).mean(0)
    assert ranks.argmin() == 1
    plan = hrank(net, images[:1], data=[images], allocation={"0": 1 / 3}, recover="none").plan
    assert plan.removed["0.weight:0"].tolist() == [False, True, False]


def test_it_trains_on_and_meets_its_budget(images):
    result = hrank(images.net, images.x, budget=topiarist.Budget(macs=0.6), **images.told)
    assert result.verification.passed
    assert result.plan.achieved["macs"] <= 0.6
    assert result.curve[-1]["accuracy"] > 0.9
