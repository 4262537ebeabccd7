"""LASSO selection and least squares: a planted choice is found, copies cost nothing, errors do not pile up."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import topiarist
from topiarist.errors import InputError
from topiarist.methods import channel_lasso
from topiarist.recover import InTurn, Refit


def test_the_units_that_matter_are_found_and_the_rest_is_exact():
    """Five of twenty units are listened to; without the others nothing changes."""
    net = nn.Sequential(nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(20))
        net[2].weight[:, 5:] = 0
    x = torch.randn(400, 20).double()
    result = channel_lasso(net, x[:1], data=[x], allocation={"0": 0.75})
    assert (~result.plan.removed["0.weight:0"]).nonzero().flatten().tolist() == [0, 1, 2, 3, 4]
    torch.testing.assert_close(result.model(x), net(x), rtol=0, atol=1e-9)


def test_of_a_copy_one_goes_and_the_rest_is_exact():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    with torch.no_grad():
        net[0].weight[3], net[0].bias[3] = net[0].weight[0], net[0].bias[0]
    x = torch.randn(300, 4).double()
    result = channel_lasso(net, x[:1], data=[x], allocation={"0": 1 / 6})
    gone = result.plan.removed["0.weight:0"].nonzero().flatten().tolist()
    assert gone in ([0], [3])
    torch.testing.assert_close(result.model(x), net(x), rtol=0, atol=1e-6)


def test_the_outputs_are_three_times_nearer_than_by_norm_without_reconstruction(images):
    half, x = topiarist.Budget(macs=0.5), images.inputs
    ours = channel_lasso(images.net, images.x, budget=half, data=images.data)
    plain = topiarist.prune(
        images.net, images.x, structure="channel", saliency="filter-l1", allocation="uniform", budget=half
    )
    images.net.eval()
    errors = [float((r.model.eval()(x) - images.net(x)).detach().square().mean().sqrt()) for r in (ours, plain)]
    assert 3 * errors[0] < errors[1]
    assert ours.verification.passed


def test_what_follows_each_set_needs_sets_that_go_in_turn(points):
    with pytest.raises(InputError, match="sequential=True"):
        topiarist.prune(points.net, points.x, structure="channel", recover=InTurn(Refit()), data=points.data)
