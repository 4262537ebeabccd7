"""Scratch: fresh weights of the smaller architecture, for as many epochs, or for as much compute."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import topiarist
from topiarist.errors import InputError
from topiarist.methods import l1_filters, scratch
from topiarist.recover import TrainingRecipe

HALF = topiarist.Budget(sparsity=0.5)


def test_both_controls_train_as_long_as_they_say(points):
    """B gets int(E · MACs before / MACs after) epochs; MACs counted by hand: widths halve, the ends stay."""
    runs = {
        equal: scratch(points.net, points.x, equal=equal, budget=HALF, **points.told) for equal in ("epochs", "compute")
    }
    macs = [8 * a + a * b + b * 4 for a, b in ((16, 12), (8, 6))]
    num_batches = len(points.data)
    assert len(runs["epochs"].history) == 4 * num_batches
    assert len(runs["compute"].history) == int(4 * macs[0] / macs[1]) * num_batches
    capped = scratch(points.net, points.x, equal="compute", cap=1.5, budget=HALF, **points.told)
    assert len(capped.history) == 6 * num_batches


def test_the_architecture_is_that_of_the_pruning_and_the_weights_are_not(points):
    pruned = l1_filters(points.net, points.x, budget=HALF, recover="none")
    told = {**points.told, "recipe": TrainingRecipe(epochs=1, lr=0.0)}
    fresh, other = (scratch(points.net, points.x, seed=seed, budget=HALF, **told).model for seed in (0, 1))
    assert [tuple(p.shape) for p in fresh.parameters()] == [tuple(p.shape) for p in pruned.model.parameters()]
    for net in (pruned.model, other):
        assert not torch.equal(net[0].weight, fresh[0].weight)
    assert 16**-0.5 < float(fresh[2].weight.detach().abs().max()) <= 8**-0.5  # drawn for 8 inputs, not for 16


def test_trained_it_works(points):
    assert scratch(points.net, points.x, budget=HALF, **points.told).curve[-1]["accuracy"] > 0.9


def test_single_weights_and_what_is_missing(points):
    result = scratch(points.net, points.x, structure="weight", budget=HALF, **points.told)
    assert result.plan.achieved["sparsity"] == pytest.approx(0.5, abs=0.01)
    with pytest.raises(InputError, match="recipe"):
        scratch(points.net, points.x, budget=HALF, data=points.data, loss=nn.functional.cross_entropy)
