"""Unit pruning by norm: the choice by a loop, masked and smaller model alike, permutations move with the units."""

from __future__ import annotations

import pytest
import torch

import topiarist
from topiarist.errors import InputError
from topiarist.mask import mask, unmask
from topiarist.methods import unit_l2

HALF = topiarist.Budget(sparsity=0.5)


def test_the_smallest_columns_of_every_layer_go_and_nothing_else_changes(points):
    result = unit_l2(points.net, points.x, budget=HALF, recover="none")
    for layer in (0, 2):
        norms = [sum(v * v for v in row) for row in points.net[layer].weight.tolist()]
        expected = sorted(sorted(range(len(norms)), key=norms.__getitem__)[: len(norms) // 2])
        assert result.plan.removed[f"{layer}.weight:0"].nonzero().flatten().tolist() == expected
    mask(points.net, result.plan)
    torch.testing.assert_close(result.model(points.inputs), points.net(points.inputs), rtol=0, atol=1e-5)
    unmask(points.net)


def test_permuted_units_are_chosen_alike(points):
    before = unit_l2(points.net, points.x, budget=HALF, recover="none").plan.removed["0.weight:0"]
    order = torch.randperm(16)
    with torch.no_grad():
        for tensor in (points.net[0].weight, points.net[0].bias):
            tensor.copy_(tensor[order].clone())
        points.net[2].weight.copy_(points.net[2].weight[:, order].clone())
    after = unit_l2(points.net, points.x, budget=HALF, recover="none").plan.removed["0.weight:0"]
    assert torch.equal(after, before[order])


def test_directions_differ_and_training_follows(points):
    plans = {
        d: unit_l2(points.net, points.x, direction=d, budget=HALF, recover="none").plan for d in ("in", "out", "both")
    }
    assert len({plan.digest for plan in plans.values()}) > 1
    assert unit_l2(points.net, points.x, budget=HALF, **points.told).curve[-1]["accuracy"] > 0.9
    with pytest.raises(InputError, match="direction"):
        unit_l2(points.net, points.x, direction="up")
