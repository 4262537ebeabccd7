"""SNIP: the scores are those of gates on the connections, and it starts from untrained weights (METHODS F1)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from topiarist import Budget
from topiarist.methods import snip
from topiarist.stats import collect_gradients


def gates(model, data):
    """|∂L/∂c| at c = 1, each weight multiplied by its own c: flat, all layers together."""
    weights = dict(model.named_parameters())
    c = {name: torch.ones_like(w, requires_grad=True) for name, w in weights.items()}
    loss = sum(
        F.cross_entropy(functional_call(model, {n: w * c[n] for n, w in weights.items()}, x), y) for x, y in data
    )
    return torch.cat([g.abs().flatten() for g in torch.autograd.grad(loss / len(data), [*c.values()])])


@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_what_goes_has_the_smallest_gradients_of_gates(mlp, blobs, sparsity):
    model = mlp(8, 10, 6, 3)
    plan = snip(model, blobs[0][0], data=blobs, loss=F.cross_entropy, budget=Budget(sparsity=sparsity)).plan
    expected = gates(model, blobs)
    gone = torch.cat([*plan.removed.values()])
    assert int(gone.sum()) == round(sparsity * len(gone))
    assert float(expected[gone].max()) <= float(expected[~gone].min()) * (1 + 1e-7)


def test_by_layer_the_signed_change_is_the_same(mlp, blobs):
    """Euler: for a homogeneous network Σ w ∂L/∂w is the same number in every layer."""
    model = mlp(8, 10, 6, 3)
    gradients = collect_gradients(model, blobs, F.cross_entropy)
    sums = [float((w.detach().double() * gradients[n].double()).sum()) for n, w in model.named_parameters()]
    assert sums == pytest.approx([sums[0]] * 3, rel=1e-10)


def test_it_goes_back_to_the_first_weights_and_trains_once(trained, blobs, recipe, accuracy):
    model, checkpoints = trained
    told = {"data": blobs, "loss": F.cross_entropy, "recipe": recipe, "budget": Budget(sparsity=0.6)}
    result = snip(model, blobs[0][0], checkpoints=checkpoints, steps=3, schedule="exponential", **told)
    first = snip(result.model, blobs[0][0], checkpoints=checkpoints, steps=3, schedule="exponential", **told)
    assert first.plan == result.plan  # whatever the weights that are handed in
    assert len(result.history) == 40
    assert {row["step"] for row in result.history} == {3}
    assert accuracy(result.model) > 0.9
    assert all(bool((p.flatten()[result.plan.removed[n]] == 0).all()) for n, p in result.model.named_parameters()
               if n in result.plan.removed)  # fmt: skip
    sabotaged = snip(model, blobs[0][0], **told)  # without checkpoints: from the trained weights
    assert sabotaged.plan != snip(model, blobs[0][0], checkpoints=checkpoints, **told).plan
