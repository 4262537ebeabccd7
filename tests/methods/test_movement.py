"""Movement pruning: scores are sums of −w ∂L/∂w′, the schedule has plateaus, what shrinks goes (METHODS F6)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from topiarist import Budget, methods
from topiarist.errors import InputError
from topiarist.methods import magnitude, movement
from topiarist.recover import FineTune, TrainingRecipe
from topiarist.schedule import resolve

HALF = Budget(sparsity=0.5)


def test_what_shrinks_goes_however_large_it_is():
    """y = 0.1 x₁ is wanted; the large weight on x₀ shrinks, the small one on x₁ grows."""
    net = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 0.1]]))
    x = torch.randn(64, 2)
    data, recipe = [(x, 2 * x[:, 1:])] * 5, TrainingRecipe(epochs=4, lr=0.01, momentum=0.0)
    result = movement(net, x, data=data, loss=F.mse_loss, recipe=recipe, budget=HALF)
    assert result.plan.removed["weight"].tolist() == [True, False]
    assert magnitude(net, x, recover="none", budget=HALF).plan.removed["weight"].tolist() == [False, True]


def test_the_first_score_is_minus_the_weight_times_the_gradient(monkeypatch):
    """S after one step of SGD is −η w · ∂L/∂w′, also where the weight is hidden."""
    seen = {}
    monkeypatch.setattr(torch.optim, "Adam", lambda parameters, lr: torch.optim.SGD(parameters, lr))
    real = methods.movement.__globals__["Movement"]
    monkeypatch.setitem(methods.movement.__globals__, "Movement", lambda scores: seen.update(scores) or real(scores))
    net, x = nn.Linear(3, 2, bias=False).double(), torch.randn(7, 3).double()
    w = net.weight.detach().clone().requires_grad_()
    (x @ w.T).square().mean().backward()
    recipe = TrainingRecipe(epochs=1, lr=0.0)
    told = {"data": [(x, None)], "loss": lambda out, _: out.square().mean(), "scores_lr": 0.5}
    movement(net, x, recipe=recipe, budget=HALF, **told)
    torch.testing.assert_close(seen["weight"], -0.5 * w.detach() * w.grad, rtol=1e-12, atol=1e-15)


def test_the_schedule_is_cubic_between_plateaus():
    ramp = resolve("movement")
    golden = [0.9 * (1 - (1 - (t - 0.1) / 0.7) ** 3) for t in (0.2, 0.45, 0.7)]
    assert [ramp(t, 0.9) for t in (0.0, 0.1, 0.2, 0.45, 0.7, 0.8, 1.0)] == pytest.approx([0, 0, *golden, 0.9, 0.9])


def test_a_shifted_task_is_better_served_than_by_magnitude(blobs, accuracy, trained):
    """A classifier of the same inputs with other classes, at a tenth of the weights."""
    model, _ = trained
    shifted = [(x.roll(1, 1), y) for x, y in blobs]
    recipe = TrainingRecipe(epochs=40, lr=0.05)
    told = {"data": shifted, "loss": F.cross_entropy, "budget": Budget(sparsity=0.9)}
    moved = movement(model, blobs[0][0], recipe=recipe, allocation="global", **told)
    small = magnitude(model, blobs[0][0], recover=FineTune(recipe), **told)
    right = [
        float(torch.cat([m(x).argmax(1) == y for x, y in shifted]).double().mean()) for m in (moved.model, small.model)
    ]
    assert right[0] > right[1]
    assert moved.plan.achieved["sparsity"] == pytest.approx(0.9, abs=2e-3)
    assert {row["step"] for row in moved.history} == {0}


def test_no_training_without_data_and_the_model_stays(trained, blobs):
    model, _ = trained
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(InputError, match="trains"):
        movement(model, blobs[0][0], budget=HALF)
    with pytest.raises(InputError, match="by layer"):
        movement(model, blobs[0][0], budget=HALF, schedule={"*": "linear"})
    movement(model, blobs[0][0], budget=HALF, data=blobs, loss=F.cross_entropy)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
