"""Straight-through masks: what is hidden has no effect and a gradient all the same."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch._dynamo
from torch import nn

import topiarist
from topiarist.errors import InputError
from topiarist.mask import StraightThrough
from topiarist.mask.attach import masked
from topiarist.schedule import resolve
from topiarist.testing.invariants import nothing_left_behind

X = torch.randn(16, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def gradients_of_what_is_used(model, plan):
    """∂L/∂W′ of the masked network, in a network of one's own."""
    twin = copy.deepcopy(model)
    masks = plan.masks(twin)
    used = {
        n: (p.detach() * ~masks[n] if n in masks else p.detach()).requires_grad_() for n, p in twin.named_parameters()
    }
    torch.func.functional_call(twin, used, X).sin().sum().backward()
    return {n: p.grad for n, p in used.items()}


@pytest.mark.parametrize("scores", ["magnitude", "movement"])
def test_the_forward_pass_is_that_of_the_masked_network(scores):
    model = make()
    masks = StraightThrough(model, X, scores=scores, sparsity=0.5)
    for score in masks.scores:
        nn.init.normal_(score)
    plan = masks.plan()
    assert {n: int(gone.sum()) for n, gone in plan.removed.items()} == {"0.weight": 15, "2.weight": 9}
    with masked(model, plan):
        expected = model(X)
    masks.attach()
    assert torch.equal(model(X), expected)
    masks.detach()


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_what_is_hidden_is_the_lowest(allocation):
    model = make()
    plan = StraightThrough(model, X, scores="magnitude", sparsity=0.4, allocation=allocation).plan()
    weights = {n: p.detach().abs().flatten().numpy() for n, p in model.named_parameters() if n in plan.removed}
    for name, flat in weights.items():
        among = flat if allocation == "uniform" else np.concatenate(list(weights.values()))
        limit = np.sort(among)[int(np.floor(0.4 * among.size + 0.5))]
        assert (plan.removed[name].numpy() == (flat < limit)).all()


def test_shadow_weights_get_the_dense_gradient():
    model = make()
    masks = StraightThrough(model, X, scores="magnitude", sparsity=0.5)
    expected, gone = gradients_of_what_is_used(model, masks.plan()), masks.plan().masks(model)
    masks.attach()
    model(X).sin().sum().backward()
    masks.detach()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-12, atol=1e-14)
    assert bool((model[0].weight.grad[gone["0.weight"]] != 0).any()), "a masked gradient would be zero here"


def test_scores_gather_movement_away_from_zero():
    """S after one step of SGD is −η ∂L/∂W′ ⊙ W, for hidden weights too; weights get ∂L/∂W′ ⊙ M."""
    model = make()
    masks = StraightThrough(model, X, sparsity=0.5)
    expected, gone = gradients_of_what_is_used(model, masks.plan()), masks.plan().masks(model)
    optimizer = torch.optim.SGD(masks.parameters(), lr=0.3)
    masks.attach()
    model(X).sin().sum().backward()
    optimizer.step()
    masks.detach()
    for units, score in zip(masks.units, masks.scores, strict=True):
        weight, gradient = dict(model.named_parameters())[units.name], expected[units.name]
        torch.testing.assert_close(score.detach(), -0.3 * gradient * weight.detach(), rtol=1e-12, atol=1e-14)
        assert bool((score[gone[units.name]] != 0).any())
        torch.testing.assert_close(weight.grad, gradient * ~gone[units.name], rtol=1e-12, atol=1e-14)


def test_hidden_weights_come_back():
    """A weight hidden for being small grows under its gradient until another is hidden."""
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.5, 0.1]]))
    masks = StraightThrough(layer, torch.zeros(1, 2), scores="magnitude", sparsity=0.5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    masks.attach()
    x = torch.tensor([[0.0, 1.0]])  # all hangs on the second
    for _ in range(10):
        optimizer.zero_grad()
        (layer(x) - 1).square().sum().backward()
        optimizer.step()
    assert masks.fold().removed["weight"].tolist() == [True, False]
    assert float(layer.weight[0, 0].detach()) == 0


def test_movement_keeps_what_the_new_task_needs_where_magnitude_does_not():
    """Weights large from an old task that the new one does not use: at a quarter of the weights movement wins."""
    torch.manual_seed(0)
    x = torch.randn(512, 40)
    y = x[:, 20:30].sum(1, keepdim=True)  # the old task used the first twenty

    def loss_after(scores):
        layer = nn.Linear(40, 1, bias=False)
        with torch.no_grad():
            layer.weight.copy_(torch.cat([torch.full((1, 20), 2.0), torch.full((1, 20), 0.1)], 1))
        masks, schedule = StraightThrough(layer, x, scores=scores), resolve("movement")
        optimizers = [torch.optim.SGD(layer.parameters(), lr=0.002)]
        optimizers += [torch.optim.SGD(masks.parameters(), lr=0.02)] if scores == "movement" else []
        masks.attach()
        for step in range(300):
            masks.sparsity = schedule(step / 300, 0.75)
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss = (layer(x) - y).square().mean()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
        masks.detach()
        return float(loss.detach())

    assert loss_after("movement") < 0.5 * loss_after("magnitude")


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's compiler looks at it, to no harm
@pytest.mark.parametrize("scores", ["magnitude", "movement"])
def test_under_torch_compile(scores):
    model = make()
    masks = StraightThrough(model, X, scores=scores, sparsity=0.5)
    masks.attach()
    expected = model(X)
    expected.sum().backward()
    gradient = model[0].weight.grad.clone()
    model.zero_grad()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    torch.testing.assert_close(compiled(X), expected, rtol=1e-12, atol=1e-12)
    compiled(X).sum().backward()
    torch.testing.assert_close(model[0].weight.grad, gradient, rtol=1e-12, atol=1e-12)
    masks.detach()
    torch._dynamo.reset()


@pytest.mark.parametrize("scores", ["magnitude", "movement"])
def test_off_again_without_a_trace(scores):
    model = make()
    with nothing_left_behind(model, X):
        masks = StraightThrough(model, X, scores=scores, sparsity=0.5)
        masks.attach()
        model(X)
        masks.detach()


def test_what_is_hidden_can_be_held_and_saved():
    model = make()
    masks = StraightThrough(model, X, sparsity=0.5)
    nn.init.normal_(masks.scores[0])
    other = StraightThrough(model, X, sparsity=0.5)
    other.load_state_dict(masks.state_dict())
    assert other.plan() == masks.plan()
    assert topiarist.Plan.from_json(masks.plan().to_json()) == masks.plan()
    assert masks.plan().achieved["sparsity"] == 0.5


def test_nonsense_is_refused():
    with pytest.raises(InputError, match="movement"):
        StraightThrough(make(), X, scores="moving")
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        StraightThrough(make(), X, sparsity=1.5)
    with pytest.raises(InputError, match="keep="):
        StraightThrough(make(), X, keep=["nothing"])
