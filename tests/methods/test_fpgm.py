"""FPGM: soft pruning, filters come back while the rate is high, and the golden choice at the end."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import nn

import topiarist
from topiarist.errors import InputError
from topiarist.methods import fpgm
from topiarist.recover import TrainingRecipe

STILL = TrainingRecipe(epochs=1, lr=0.0)


def test_of_0_1_2_10_one_of_the_middle_goes_and_never_the_outlier(points):
    """He et al.'s own example: distances sum to 13, 11, 11, 27."""
    net = nn.Sequential(nn.Linear(1, 4, bias=False), nn.ReLU(), nn.Linear(4, 4))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[0.0], [1.0], [2.0], [10.0]]))
    told = {**points.told, "data": [(points.inputs[:, :1], points.targets)], "recipe": STILL}
    told.pop("evaluate")
    result = fpgm(net, points.x[:, :1], budget=topiarist.Budget(sparsity=0.25), recover="none", **told)
    assert result.plan.removed["0.weight:0"].nonzero().flatten().tolist() in ([1], [2])


def test_filters_come_back_and_the_last_choice_holds(images):
    """With a high rate the masks of two epochs differ; the network is smaller and works after the last one."""
    chosen = []
    told = {**images.told, "recipe": TrainingRecipe(epochs=6, lr=0.1)}

    def watched(slices):
        scores = topiarist.saliency.GeometricMedian()(slices)
        chosen.append((slices.units.name, frozenset(scores.argsort()[: len(scores) // 2].tolist())))
        return scores

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module("topiarist.methods.fpgm"), "GeometricMedian", lambda *_: watched)
        result = fpgm(images.net, images.x, budget=topiarist.Budget(sparsity=0.5), **told)
    first = [which for name, which in chosen if name == "0.weight:0"]
    assert len(first) == 6
    assert len(set(first)) > 1
    assert set(result.plan.removed["0.weight:0"].nonzero().flatten().tolist()) == first[-1]
    assert [row["step"] for row in result.curve] == [1, 2, 3, 4, 5, 6]
    assert result.verification.passed
    assert result.curve[-1]["accuracy"] > 0.8


def test_the_model_stays_and_what_is_missing_is_said(images):
    before = {name: value.clone() for name, value in images.net.state_dict().items()}
    fpgm(images.net, images.x, budget=topiarist.Budget(sparsity=0.5), **images.told)
    assert all(torch.equal(value, before[name]) for name, value in images.net.state_dict().items())
    with pytest.raises(InputError, match="recipe"):
        fpgm(images.net, images.x, budget=topiarist.Budget(sparsity=0.5), data=images.data)
    none = {**images.told, "recipe": TrainingRecipe(epochs=0)}
    with pytest.raises(InputError, match="no step"):
        fpgm(images.net, images.x, budget=topiarist.Budget(sparsity=0.5), **none)
