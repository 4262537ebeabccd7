"""Data-free merging: exact for duplicates without looking at data, and for scaled ones where it compares directions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import topiarist
from topiarist.methods import data_free


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("normalize", [True, False])
def test_k_duplicates_go_for_nothing(scale, normalize):
    """Four of ten neurons are (scaled) copies of others: the first four merges leave the outputs as they are."""
    net = nn.Sequential(nn.Linear(5, 10), nn.ReLU(), nn.Linear(10, 3)).double()
    with torch.no_grad():
        net[0].weight[6:] = scale * net[0].weight[:4]
        net[0].bias[6:] = scale * net[0].bias[:4]
    x = torch.randn(100, 5).double()
    result = data_free(net, x[:1], normalize=normalize, allocation={"0": 0.4})
    is_same = torch.allclose(result.model(x), net(x), rtol=0, atol=1e-9)
    assert is_same == (scale == 1.0 or normalize)


def test_merging_beats_deleting(points):
    """The same fraction of each layer: outputs stay nearer than by the norm."""
    wide = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))
    with torch.no_grad():
        wide[0].weight[32:] = wide[0].weight[:32] + 0.05 * torch.randn(32, 8)
        wide[0].bias[32:] = wide[0].bias[:32]
        half = {"budget": topiarist.Budget(sparsity=0.5)}
        ours = data_free(wide, points.x, **half)
        plain = topiarist.methods.unit_l2(wide, points.x, recover="none", **half)
        errors = [float((r.model(points.inputs) - wide(points.inputs)).norm()) for r in (ours, plain)]
    assert errors[0] < 0.2 * errors[1]
    assert ours.verification.passed
