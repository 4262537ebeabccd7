"""Sparse training: the exchange against a loop of one's own, its invariants, and what it finds."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import topiarist
from topiarist import Budget, Plan
from topiarist.errors import FormatError, InputError
from topiarist.mask import Regrower, attach, mask, unmask
from topiarist.mask.regrow import drop_fraction

GENERATOR = torch.Generator().manual_seed(5)
X = torch.randn(32, 7, dtype=torch.float64, generator=GENERATOR)
Y = torch.randn(32, 3, dtype=torch.float64, generator=GENERATOR)
NAMES = ("0.weight", "2.weight")


@pytest.fixture(autouse=True)
def _nothing_stays_masked():
    yield
    for model in [nn.Identity(), *attach._attached]:
        unmask(model)
    assert not attach._handles


def make(sparsity=0.7):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 3)).double()
    plan = topiarist.plan(model, X, saliency="random", allocation="uniform", budget=Budget(sparsity=sparsity))
    return model, plan


def one_step(model, optimizer):
    optimizer.zero_grad()
    nn.functional.mse_loss(model(X), Y).backward()
    optimizer.step()


def test_the_gradient_of_a_masked_weight_is_the_dense_one():
    """Central differences of the loss in every entry of W ⊙ M, the masked ones too."""
    model, plan = make()
    mask(model, plan)
    nn.functional.mse_loss(model(X), Y).backward()
    gone = plan.masks(model)["0.weight"]
    assert bool((model[0].weight.grad[gone] != 0).any())
    with torch.no_grad():
        for place in range(model[0].weight.numel()):
            losses = []
            for step in (1e-5, -1e-5):
                twin = copy.deepcopy(model)
                twin[0].weight.view(-1)[place] += step
                losses.append(float(nn.functional.mse_loss(twin(X), Y)))
            slope = (losses[0] - losses[1]) / 2e-5
            assert float(model[0].weight.grad.view(-1)[place]) == pytest.approx(slope, abs=1e-9)


@pytest.mark.parametrize("grow", ["gradient", "random"])
def test_the_exchange_is_that_of_the_paper(grow):
    model, plan = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    regrower = Regrower(model, plan, end=20, every=3, fraction=0.4, grow=grow)
    off = {name: plan.removed[name].numpy().copy() for name in NAMES}
    num_on = {name: int((~gone).sum()) for name, gone in off.items()}
    for t in range(1, 24):
        one_step(model, optimizer)
        state = {n: p.detach().numpy().ravel().copy() for n, p in model.named_parameters()}
        grads = {n: p.grad.numpy().ravel().copy() for n, p in model.named_parameters()}
        new = regrower.step()
        assert (new is not None) == (t % 3 == 0 and t < 20)
        if new is None:
            continue
        for name in NAMES:
            k = math.floor(0.2 * (1 + math.cos(math.pi * t / 20)) * num_on[name] + 0.5)
            on = sorted(np.flatnonzero(~off[name]), key=lambda i: (-abs(state[name][i]), -i))
            kept = set(on[: num_on[name] - k])
            found = set(np.flatnonzero(~new.removed[name].numpy()))
            assert kept <= found
            assert len(found) == num_on[name]
            others = [i for i in range(off[name].size) if i not in kept]
            if grow == "gradient":
                assert found - kept == set(sorted(others, key=lambda i: -abs(grads[name][i]))[:k])
            weight = dict(model.named_parameters())[name].detach().numpy().ravel()
            momentum = optimizer.state[dict(model.named_parameters())[name]]["momentum_buffer"].numpy().ravel()
            for i in found:
                if off[name][i]:
                    assert weight[i] == 0, "what is grown starts at 0"
                    assert momentum[i] == 0, "and so does its momentum"
                else:
                    assert weight[i] == state[name][i], "what stays, or is chosen again, keeps its value"
            assert not weight[sorted(set(others) - found)].any()
            off[name] = new.removed[name].numpy().copy()


def test_momentum_of_what_is_grown_starts_at_zero_with_any_optimizer():
    model, plan = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    regrower = Regrower(model, plan, end=100, every=4, fraction=0.6)
    num_grown = 0
    for _ in range(16):
        before = regrower.plan
        one_step(model, optimizer)
        if (new := regrower.step()) is not None:
            for name, parameter in ((n, p) for n, p in model.named_parameters() if n in NAMES):
                grown = (before.removed[name] & ~new.removed[name]).view(parameter.shape)
                num_grown += int(grown.sum())
                for key in ("exp_avg", "exp_avg_sq"):
                    assert bool((optimizer.state[parameter][key][grown] == 0).all())
    assert num_grown > 10


def test_the_fraction_falls_as_a_cosine():
    assert drop_fraction(0, 750) == 0.3
    assert drop_fraction(750, 750) == 0
    assert drop_fraction(250, 750, 0.4) == pytest.approx(0.2 * (1 + 0.5))


def test_growing_at_random_is_uniform_and_a_function_of_the_seed():
    def grown(seed):
        layer = nn.Linear(40, 50, bias=False)
        with torch.no_grad():
            layer.weight.copy_(torch.arange(2000.0).view(50, 40))
        regrower = Regrower(
            layer, Plan("weight", {"weight": torch.arange(2000) < 1000}), end=9, every=1, fraction=1.0, grow="random",
            seed=seed,
        )  # fmt: skip
        on = ~regrower.step().removed["weight"]
        unmask(layer)
        return on

    one, same, other = grown(0), grown(0), grown(1)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    kept = 1000 - math.floor(drop_fraction(1, 9, 1.0) * 1000 + 0.5)
    num = 1000 - kept  # drawn without replacement from 2000 − kept, 1000 of them off before: hypergeometric
    mean, p = num * 1000 / (2000 - kept), 1000 / (2000 - kept)
    spread = math.sqrt(num * p * (1 - p) * (2000 - kept - num) / (1999 - kept))
    for on in (one, other):
        assert abs(int(on[:1000].sum()) - mean) < 4 * spread


def updates_until_found(grow, seed):
    """A target that hangs on one feature among 60, masked at first: after how many exchanges it is on."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(256, 60, generator=generator)
    torch.manual_seed(seed)
    layer = nn.Linear(60, 1, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.05)
    regrower = Regrower(
        layer, Plan("weight", {"weight": torch.arange(60) >= 4}), end=1000, every=1, grow=grow, seed=seed
    )
    for update in range(1, 200):  # noqa: B007 its last value is what is asked for
        optimizer.zero_grad()
        (layer(inputs).squeeze(1) - 3 * inputs[:, 59]).pow(2).mean().backward()
        optimizer.step()
        if not regrower.step().removed["weight"][59]:
            break
    unmask(layer)
    return update


def test_the_gradient_finds_what_chance_finds_later():
    by_gradient = [updates_until_found("gradient", seed) for seed in range(5)]
    by_chance = [updates_until_found("random", seed) for seed in range(5)]
    assert max(by_gradient) <= 10
    assert sum(by_chance) > 5 * sum(by_gradient)


@pytest.mark.parametrize("grow", ["gradient", "random"])
def test_an_interrupted_training_goes_on_as_if_nothing_had_been(grow):
    def begin():
        model, plan = make()
        return model, torch.optim.Adam(model.parameters(), lr=0.02), Regrower(model, plan, end=18, every=2, grow=grow)

    def train(model, optimizer, regrower, num):
        for _ in range(num):
            one_step(model, optimizer)
            regrower.step()

    model, optimizer, regrower = begin()
    train(model, optimizer, regrower, 20)
    whole = copy.deepcopy(model.state_dict())
    model, optimizer, regrower = begin()
    train(model, optimizer, regrower, 7)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict())), json.dumps(regrower.state_dict())
    model, optimizer, regrower = begin()
    model.load_state_dict(saved[0][0])
    optimizer.load_state_dict(saved[0][1])
    regrower.load_state_dict(json.loads(saved[1]))
    train(model, optimizer, regrower, 13)
    assert all(torch.equal(value, whole[name]) for name, value in model.state_dict().items())


def test_dense_layers_stay_as_they_are():
    model, _ = make()
    plan = Plan("weight", {"0.weight": torch.zeros(63, dtype=torch.bool), "2.weight": torch.arange(27) < 20})
    regrower = Regrower(model, plan, end=9, every=1)
    one_step(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert not regrower.step().removed["0.weight"].any()


@pytest.mark.parametrize(
    "options", [{"end": 0}, {"end": 3, "every": 0}, {"end": 3, "fraction": 1.5}, {"end": 3, "grow": "x"}]
)
def test_nonsense_is_refused(options):
    model, plan = make()
    with pytest.raises(InputError):
        Regrower(model, plan, **options)
    with pytest.raises(InputError, match="single weights"):
        Regrower(model, Plan("channel", {}), end=3)
    with pytest.raises(InputError, match="before zero_grad"):
        Regrower(model, plan, end=3, every=1).step()
    for state in ({}, {"step": 1, "plan": None}, {"step": 1, "plan": "{"}):
        with pytest.raises(FormatError):
            Regrower(model, plan, end=3).load_state_dict(state)
