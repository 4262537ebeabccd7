"""Network Slimming: the sub-gradient, the global threshold on |γ|, layers without norms, and a run that goes on."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import topiarist
from topiarist.errors import InputError
from topiarist.mask import ScaleL1, units_in
from topiarist.methods import network_slimming
from topiarist.recover import TrainingRecipe, train

HALF = topiarist.Budget(sparsity=0.5)


def test_the_penalty_is_added_between_backward_and_step():
    """One step of plain SGD with λ and one without differ by exactly −lr · λ · sign(γ) on γ, and nowhere else."""
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        net[1].weight.copy_(torch.tensor([0.5, -0.25, 0.0, 2.0]))
    data = [(torch.randn(6, 3).double(), torch.arange(6) % 2)]
    recipe = TrainingRecipe(epochs=1, lr=0.1, momentum=0.0)
    _, units = units_in(net, torch.zeros(1, 3).double())
    after = []
    for strength in (0.0, 0.01):
        work = copy.deepcopy(net)
        train(work, data, F.cross_entropy, recipe, before_step=ScaleL1(work, units, strength))
        after.append(dict(work.named_parameters()))
    for name, plain in after[0].items():
        expected = -0.1 * 0.01 * net[1].weight.sign() if name == "1.weight" else torch.zeros_like(plain)
        torch.testing.assert_close(after[1][name] - plain, expected, rtol=0, atol=1e-15)


def test_the_channels_of_smallest_scale_over_all_layers_go(images):
    with torch.no_grad():
        images.net[1].weight.copy_(torch.tensor([0.9, -0.01, 0.8, 0.02, -0.7, 0.6, 0.5, 0.4]))
        images.net[4].weight.copy_(torch.tensor([0.3, -0.9, 0.03, -0.04, 0.05, 0.06]))
    told = {**images.told, "recipe": TrainingRecipe(epochs=1, lr=0.0)}  # nothing moves
    plan = network_slimming(images.net, images.x, budget=HALF, recover="none", **told).plan
    gone = {name: removed.nonzero().flatten().tolist() for name, removed in plan.removed.items()}
    assert gone == {"0.weight:0": [1, 3], "3.weight:0": [0, 2, 3, 4, 5]}


def test_scales_shrink_under_the_penalty_and_the_net_still_learns(images):
    before = float(images.net[1].weight.detach().abs().sum())
    result = network_slimming(images.net, images.x, strength=1e-2, budget=HALF, **images.told)
    assert result.verification.passed
    assert result.curve[-1]["accuracy"] > 0.9
    work = copy.deepcopy(images.net)
    _, units = units_in(work, images.x)
    train(work, images.data, F.cross_entropy, images.recipe, before_step=ScaleL1(work, units, 1e-2))
    assert float(work[1].weight.detach().abs().sum()) < before


def test_what_no_norm_scales_stays(images):
    net = nn.Sequential(*images.net[:7], nn.Linear(384, 16), nn.ReLU(), nn.Linear(16, 3))
    result = network_slimming(net, images.x, budget=HALF, recover="none", **images.told)
    assert result.model[7].out_features == 16
    assert result.plan.num_removed == 7


def test_a_run_that_was_stopped_trains_once(images, tmp_path):
    first = network_slimming(images.net, images.x, budget=HALF, recover="none", folder=tmp_path, **images.told)
    told = {**images.told, "recipe": TrainingRecipe(epochs=1, lr=1e9)}  # would ruin it
    again = network_slimming(images.net, images.x, budget=HALF, recover="none", folder=tmp_path, **told)
    assert again.plan == first.plan


def test_what_is_missing_is_said(images, points):
    with pytest.raises(InputError, match="needs data, loss"):
        network_slimming(images.net, images.x, budget=HALF, recipe=images.recipe)
    with pytest.raises(InputError, match="no scale to press on"):
        network_slimming(points.net, points.x, budget=HALF, **points.told)
