"""RigL and SET: counts stay, what grows was asked for, and what is needed is found (METHODS F5)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from topiarist import Budget
from topiarist.allocation import ErdosRenyi
from topiarist.errors import InputError
from topiarist.methods import random_pruning, rigl
from topiarist.recover import TrainingRecipe
from topiarist.recover.regrow import Regrow


@pytest.mark.parametrize("growth", ["gradient", "random"])
def test_the_number_of_weights_of_each_layer_stays_that_of_erk(mlp, blobs, recipe, growth):
    model, budget = mlp(8, 16, 12, 3), Budget(sparsity=0.7)
    told = {"data": blobs, "loss": F.cross_entropy, "recipe": recipe, "every": 3, "growth": growth}
    result = rigl(model, blobs[0][0], budget=budget, **told)
    start = random_pruning(model, blobs[0][0], allocation=ErdosRenyi(), budget=budget).plan
    assert [int(g.sum()) for g in result.plan.removed.values()] == [int(g.sum()) for g in start.removed.values()]
    assert result.plan != start
    assert result.plan.achieved == pytest.approx(start.achieved, rel=1e-2)
    for name, p in result.model.named_parameters():
        assert not p.detach().flatten()[result.plan.removed[name]].any()
    assert len(result.history) == 40


def test_a_feature_that_was_masked_at_first_is_found():
    """The target is one of 64 inputs; four weights of 64 are there at first, and not that one."""
    torch.manual_seed(1)
    x = torch.randn(256, 64)
    data = [(x[i : i + 64], x[i : i + 64, 5:6]) for i in range(0, 256, 64)]
    model = nn.Linear(64, 1, bias=False)
    told = {"data": data, "loss": F.mse_loss, "budget": Budget(sparsity=60 / 64), "allocation": "uniform"}
    training = TrainingRecipe(epochs=10, lr=0.1, momentum=0.0)
    with torch.no_grad():
        start = rigl(model, x[:1], recipe=TrainingRecipe(epochs=0), **told).plan
    assert bool(start.removed["weight"][5])
    found = rigl(model, x[:1], recipe=training, every=4, **told)
    assert not bool(found.plan.removed["weight"][5])
    assert found.history[-1]["loss"] < 0.05
    static = rigl(model, x[:1], recipe=training, every=1000, **told)  # the sabotaged twin: nothing is exchanged
    assert static.history[-1]["loss"] > 0.5


def test_it_needs_a_recipe_and_a_part_of_it(mlp, blobs):
    with pytest.raises(InputError, match="recipe"):
        rigl(mlp(8, 4, 3), blobs[0][0], data=blobs, loss=F.cross_entropy, budget=Budget(sparsity=0.5))
    with pytest.raises(InputError, match=r"\(0, 1\]"):
        Regrow(until=0.0)
