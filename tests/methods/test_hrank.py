"""HRank: maps of low rank go first (Lin et al. 2020), by construction."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from topiarist import Budget
from topiarist.methods import hrank, random_pruning


def planted():
    """Filters 1 and 3 of four make maps of rank 1 of any image, the others pass it on."""
    net = nn.Sequential(nn.Conv2d(1, 4, 5, padding=2, bias=False), nn.Conv2d(4, 2, 1), nn.Flatten(), nn.Linear(128, 2))
    with torch.no_grad():
        net[0].weight.zero_()
        for filter_, place in ((0, (2, 2)), (2, (1, 2))):
            net[0].weight[filter_, 0][place] = 1.0
    return net


def test_maps_of_low_rank_go():
    net, x = planted(), torch.randn(6, 1, 8, 8)
    with torch.no_grad():
        net[0].weight[1] = 100.0  # a large filter that sums nearly all of the image: low rank is not low norm
        net[0].weight[3] = 0.0
    x = x * 0 + torch.eye(8) * torch.randn(6, 1, 1, 1)
    ranks = [torch.linalg.matrix_rank(net[0](x)[:, j]).double().mean().item() for j in range(4)]
    plan = hrank(net, x[:1], data=[x], recover="none", budget=Budget(sparsity=0.5), keep=["1"]).plan
    expected = sorted(range(4), key=lambda j: ranks[j])[:2]
    assert plan.removed["0.weight:0"].nonzero().flatten().tolist() == sorted(expected)


def test_end_to_end():
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.Flatten(), nn.Linear(16, 3))
    x = torch.randn(12, 1, 6, 6)
    data = [(x, torch.arange(12) % 3)]
    told = {"data": data, "loss": F.cross_entropy, "budget": Budget(macs=0.5)}
    result = hrank(net, x[:1], **told)
    assert result.verification.passed
    assert len(result.history) == 1
    other = random_pruning(net, x[:1], structure="channel", **told)
    assert other.plan != result.plan
