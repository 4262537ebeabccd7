"""Mask ensembles: the mean of a loop over masked networks, whose variance falls as 1/M."""

from __future__ import annotations

import copy
import math

import pytest
import torch

import topiarist
from topiarist.errors import InputError
from topiarist.mask import mask
from topiarist.mask.ensemble import MaskEnsemble
from topiarist.methods import mask_ensemble
from topiarist.saliency import Random

SOME = topiarist.Budget(sparsity=0.3)


def plans(points, num, structure="weight", seed=0):
    options = {"structure": structure, "allocation": "uniform", "budget": SOME}
    return [topiarist.plan(points.net, points.x, saliency=Random(seed + k), **options) for k in range(num)]


@pytest.mark.parametrize("structure", ["weight", "channel"])
def test_it_is_the_mean_of_a_loop_over_masked_networks(points, structure):
    made, total = plans(points, 5, structure), 0.0
    for plan in made:
        work = copy.deepcopy(points.net)
        total = total + mask(work, plan)(points.inputs).detach().softmax(1)
    ensemble = MaskEnsemble(copy.deepcopy(points.net), made)
    torch.testing.assert_close(ensemble(points.inputs).detach().exp(), total / 5, rtol=0, atol=1e-6)
    mean, variance = ensemble.moments(points.inputs)
    single = torch.stack([p.detach().exp() for p in ensemble.each(points.inputs)])
    torch.testing.assert_close(mean.detach(), total / 5, rtol=0, atol=1e-6)
    torch.testing.assert_close(variance.detach(), single.var(0) / 5, rtol=1e-4, atol=1e-9)


def test_the_variance_of_independent_ensembles_falls_as_one_over_m(points):
    """200 masks as 200, 50 and 12 ensembles; a mean of variances of n values is off by about √(2 / n): within 40 %."""
    ensemble = MaskEnsemble(points.net, plans(points, 200))
    with torch.no_grad():
        single = torch.stack([p.exp() for p in ensemble.each(points.inputs)])
    variances = {}
    for size in (1, 4, 16):
        means = single[: 200 // size * size].reshape(-1, size, *single.shape[1:]).mean(1)
        variances[size] = float(means.var(0).mean())
    for size in (4, 16):
        assert variances[size] == pytest.approx(variances[1] / size, rel=0.4)
    estimate = float(MaskEnsemble(points.net, plans(points, 16)).moments(points.inputs)[1].detach().mean())
    assert estimate == pytest.approx(variances[16], rel=0.5)


def test_the_curve_has_variance_and_cost_against_m(points):
    result = mask_ensemble(points.net, points.x, num=12, budget=SOME, **points.told)
    assert [row["num_masks"] for row in result.curve] == [1, 2, 4, 8, 12]
    for row in result.curve:
        assert row["variance"] == pytest.approx(result.curve[0]["variance"] / row["num_masks"])
        assert row["macs"] == pytest.approx(row["num_masks"] * result.plan.achieved["macs"])
    assert result.curve[-1]["accuracy"] > 0.8
    assert math.isnan(float(MaskEnsemble(points.net, plans(points, 1)).moments(points.inputs)[1].detach().max()))


def test_the_weights_stay_whole_and_learn_through_the_mean(points):
    before = {name: value.clone() for name, value in points.net.state_dict().items()}
    ensemble = mask_ensemble(points.net, points.x, num=3, budget=SOME).model
    torch.nn.functional.nll_loss(ensemble(points.inputs), points.targets).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in ensemble.model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in points.net.state_dict().items())
    again = copy.deepcopy(ensemble)
    again.load_state_dict(ensemble.state_dict())
    torch.testing.assert_close(again(points.inputs), ensemble(points.inputs), rtol=0, atol=0)


def test_no_masks_are_refused(points):
    with pytest.raises(InputError, match="1 mask or more"):
        MaskEnsemble(points.net, [])
    with pytest.raises(InputError, match="num=0"):
        mask_ensemble(points.net, points.x, num=0, budget=SOME)
