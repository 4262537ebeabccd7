"""What the methods ask of other rooms: recovery at the end, a call before each step, prices of many steps."""

from __future__ import annotations

import torch
from torch import nn

import topiarist
from topiarist.measure.size import bytes_stored
from topiarist.recover import AtEnd, TrainingRecipe, train


def test_recovery_at_the_end_follows_the_last_cut_alone():
    seen = []
    net, x = nn.Linear(4, 4), torch.zeros(1, 4)
    at_end = AtEnd(lambda model, context: seen.append(context.is_last) or [])
    topiarist.prune(net, x, budget=topiarist.Budget(sparsity=0.5), schedule="linear", steps=3, recover=at_end)
    assert seen == [True]


def test_what_is_called_before_the_step_sees_gradients_and_changes_them():
    net, x = nn.Linear(2, 1, bias=False), torch.ones(4, 2)
    start = net.weight.detach().clone()

    def press(model):
        assert model.weight.grad is not None
        model.weight.grad.fill_(1.0)

    recipe = TrainingRecipe(epochs=3, lr=0.5, momentum=0.0)
    train(net, [(x, torch.zeros(4, 1))], nn.functional.mse_loss, recipe, before_step=press)
    torch.testing.assert_close(net.weight.detach(), start - 1.5)


def test_bytes_are_a_part_of_the_dense_model_at_every_step():
    """The price of the last of many steps is what is stored of the result over what is stored of the model."""
    net, x = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 10)), torch.zeros(1, 30)
    told = {"budget": topiarist.Budget(sparsity=0.8), "schedule": "linear"}
    many, one = (topiarist.prune(net, x, steps=n, **told) for n in (4, 1))
    assert many.plan.achieved["bytes"] == bytes_stored(many.model) / bytes_stored(net)
    assert many.plan.achieved["bytes"] == one.plan.achieved["bytes"]
