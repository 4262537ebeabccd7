"""Low rank: the nearest matrix, weighted by inputs the least error of outputs (Eckart, Young; Zhang et al. 2015)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from topiarist import Budget
from topiarist.errors import InputError
from topiarist.methods import low_rank


@pytest.fixture
def case():
    net = nn.Sequential(nn.Linear(24, 20, bias=True), nn.Identity()).double()
    x = torch.randn(200, 24, dtype=torch.float64) @ torch.randn(24, 24, dtype=torch.float64)
    return net, x


def test_it_is_the_truncated_decomposition(case):
    net, x = case
    result = low_rank(net, x[:1], budget=Budget(params=0.6))
    small = result.model[0]
    matrix = (small[1].weight @ small[0].weight).detach().numpy()
    u, s, v = np.linalg.svd(net[0].weight.detach().numpy())
    r = small.rank
    np.testing.assert_allclose(matrix, (u[:, :r] * s[:r]) @ v[:r], rtol=1e-9, atol=1e-12)
    assert r * 44 + 20 <= 0.6 * 500 < (r + 1) * 44 + 20  # as many as the budget holds


def test_weighted_is_best_for_the_outputs_and_plain_for_the_weights(case):
    net, x = case
    plain, weighted = (
        low_rank(net, x[:1], weighted=w, data=[x], budget=Budget(params=0.6)).model for w in (False, True)
    )
    assert plain[0].rank == weighted[0].rank
    outputs = [float((m(x) - net(x)).detach().norm()) for m in (plain, weighted)]
    weights = [float((m[0][1].weight @ m[0][0].weight - net[0].weight).detach().norm()) for m in (plain, weighted)]
    assert outputs[1] < outputs[0]
    assert weights[0] < weights[1]
    product = net[0].weight.detach() @ x.T  # no matrix of this rank is nearer to the products than the sum of the rest
    least = float(torch.linalg.svdvals(product)[weighted[0].rank :].norm())
    assert outputs[1] == pytest.approx(least, rel=1e-6)


def test_convolutions_too_and_data_is_asked_for(case):
    with pytest.raises(InputError, match="data"):
        low_rank(*case, weighted=True, budget=Budget(params=0.6))
    net, x = nn.Sequential(nn.Conv2d(4, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3)), torch.randn(2, 4, 8, 8)
    result = low_rank(net, x, weighted=True, data=[x], budget=Budget(macs=0.6))
    assert result.verification.passed
    assert result.plan.achieved["macs"] <= 0.6
