"""GraSP: what goes raises the gradient's norm most (METHODS F2)."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from topiarist import Budget
from topiarist.methods import grasp
from topiarist.stats import collect_gradients

NAMES = ("0.weight", "2.weight")


def norm(model, data):
    """‖g‖² over the weights, g the mean gradient of the loss."""
    found = collect_gradients(model, data, F.cross_entropy)
    return sum(float(found[n].double().square().sum()) for n in NAMES)


def risen(model, data, name, index, step=1e-4):
    """(‖g‖² after − before) / 2ε when one weight shrinks by ε of itself."""
    work = copy.deepcopy(model)
    with torch.no_grad():
        work.get_parameter(name).view(-1)[index] *= 1 - step
    return (norm(work, data) - norm(model, data)) / (2 * step)


def test_removal_raises_the_norm_more_for_all_that_goes(mlp, blobs):
    model = mlp(8, 5, 3)
    told = {"data": blobs, "loss": F.cross_entropy, "temperature": 1.0}
    plan = grasp(model, blobs[0][0], budget=Budget(sparsity=0.5), **told).plan
    rises = {name: [risen(model, blobs, name, i) for i in range(model.get_parameter(name).numel())] for name in NAMES}
    gone = [r for n in NAMES for r, g in zip(rises[n], plan.removed[n].tolist(), strict=True) if g]
    left = [r for n in NAMES for r, g in zip(rises[n], plan.removed[n].tolist(), strict=True) if not g]
    slack = 1e-3 * max(map(abs, gone + left))  # of the finite differences
    assert min(gone) >= max(left) - slack
    assert min(left) < max(gone) - 10 * slack  # the sabotaged twin: the other end kept


def test_the_temperature_matters_and_gradients_are_needed(mlp, blobs):
    model, budget = mlp(8, 5, 3), Budget(sparsity=0.5)
    told = {"data": blobs, "loss": F.cross_entropy, "budget": budget}
    assert grasp(model, blobs[0][0], **told).plan != grasp(model, blobs[0][0], temperature=1.0, **told).plan
    with pytest.raises(ValueError, match="data"):
        grasp(model, blobs[0][0], budget=budget)
