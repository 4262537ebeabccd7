"""Structure expert: the router and the stacks of weights shrink together, and the rest is the function without them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import topiarist
from topiarist import Budget
from topiarist.errors import BudgetError, InputError
from topiarist.graph import trace
from topiarist.plan import Slice

NUM = 6


class Looked(nn.Module):
    """Weights of the chosen experts are looked up by their indices."""

    def __init__(self, top=2):
        super().__init__()
        self.top, self.gate = top, nn.Linear(5, NUM)
        self.up, self.down = nn.Parameter(torch.randn(NUM, 5, 7)), nn.Parameter(torch.randn(NUM, 7, 5))
        self.last = nn.Linear(5, 3)

    def forward(self, x, logits=lambda z: z):
        weights, chosen = torch.softmax(logits(self.gate(x)), -1).topk(self.top, -1)
        hidden = F.relu(torch.einsum("bc,bkch->bkh", x, self.up[chosen]))
        return self.last(torch.einsum("bkh,bkhc,bk->bc", hidden, self.down[chosen], weights))


class Scattered(Looked):
    """All experts run on all tokens; those not chosen count zero."""

    def forward(self, x, logits=lambda z: z):
        scores = logits(self.gate(x))
        best, chosen = torch.topk(scores, self.top, -1)
        weights = torch.zeros_like(scores).scatter(1, chosen, best.softmax(-1))
        hidden = F.relu(torch.bmm(x.expand(self.up.shape[0], -1, -1), self.up))
        return self.last((torch.bmm(hidden, self.down) * weights.t()[..., None]).sum(0))


class Gathered(Looked):
    """Top-1: an argmax, its weight gathered, the index moved about on the way."""

    def forward(self, x, logits=lambda z: z):
        scores = torch.softmax(logits(self.gate(x)), -1)
        chosen = scores.argmax(-1, keepdim=True)
        weight = scores.gather(1, chosen)
        place = chosen.view(-1).clone()
        hidden = F.relu(torch.einsum("bc,bch->bh", x, self.up[place]))
        return self.last(torch.einsum("bh,bhc->bc", hidden, self.down[place]) * weight)


NETS = [Looked, Scattered, Gathered]
X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))


def without(gone):
    """The router's outputs with experts that are never chosen and weigh nothing."""
    return lambda logits: logits.masked_fill(gone, -torch.inf)


@pytest.mark.parametrize("make", NETS)
def test_what_is_left_is_the_network_whose_router_never_chooses_the_others(make, tmp_path):
    torch.manual_seed(0)
    model = make()
    result = topiarist.prune(model, X, structure="expert", budget=Budget(sparsity=0.5))
    small = result.model
    assert result.plan.structure == "expert"
    ((name, gone),) = result.plan.removed.items()
    assert int(gone.sum()) == NUM // 2
    assert small.gate.weight.shape == (3, 5)
    assert small.gate.out_features == 3
    assert (small.up.shape, small.down.shape) == ((3, 5, 7), (3, 7, 5))
    x = torch.randn(50, 5)
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x, without(gone)), rtol=1e-5, atol=1e-6)
        wrong = model(x, without(gone.roll(1)))
    assert not torch.allclose(small(x), wrong, rtol=1e-3)
    before, after = topiarist.measure(model, X), topiarist.measure(small, X)
    assert result.plan.achieved["params"] == pytest.approx(after.num_params / before.num_params, abs=1e-12)
    assert result.plan.achieved["macs"] == pytest.approx(after.macs / before.macs, abs=1e-12)
    assert name in result.plan.inexact
    loaded = topiarist.load(topiarist.save(small, tmp_path), build=make)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), small(x), rtol=0, atol=0)


@pytest.mark.parametrize("make", NETS)
def test_the_proof_is_against_experts_that_are_never_chosen(make):
    torch.manual_seed(0)
    model, x = make(), torch.randn(50, 5)
    plan = topiarist.plan(model, x, structure="expert", budget=Budget(sparsity=0.5))
    checked = topiarist.verify(model, topiarist.shrink(model, plan), plan, x)
    assert checked.passed
    assert checked.unchosen == tuple(plan.removed)
    assert "never chosen" in str(checked)
    for name, pieces in plan.slices.items():
        shifted = {**plan.slices, name: tuple(Slice(piece.dim, piece.removed.roll(1)) for piece in pieces)}
        sabotaged = replace(plan, slices=shifted)
        assert not topiarist.verify(model, topiarist.shrink(model, sabotaged), sabotaged, x).passed


def test_where_the_operators_over_experts_know_no_absence_nothing_is_claimed():
    class Normed(Looked):
        def forward(self, x):
            scores = torch.softmax(F.layer_norm(self.gate(x), (self.gate.out_features,)), -1)
            weights, chosen = scores.topk(self.top, -1)
            hidden = F.relu(torch.einsum("bc,bkch->bkh", x, self.up[chosen]))
            return self.last(torch.einsum("bkh,bkhc,bk->bc", hidden, self.down[chosen], weights))

    model = Normed()
    plan = topiarist.plan(model, X, structure="expert", budget=Budget(sparsity=0.5))
    checked = topiarist.verify(model, topiarist.shrink(model, plan), plan, X)
    assert checked.unchosen == ()
    assert checked.inexact


@pytest.mark.parametrize("top", [1, 2, 4])
def test_as_many_stay_as_are_chosen(top):
    model = Looked(top)
    plan = topiarist.plan(model, X, structure="expert", budget=Budget(sparsity=1 - top / NUM))
    assert topiarist.shrink(model, plan, X).gate.out_features == top
    with pytest.raises(BudgetError, match=f"keeps {top}"):
        topiarist.plan(model, X, structure="expert", budget=Budget(params=0.01))


def test_scores_are_those_of_the_expert_s_own_weights():
    torch.manual_seed(0)
    model = Looked()
    norms = sum(t.detach().double().flatten(1).pow(2).sum(1) for t in (model.up, model.down, model.gate.weight))
    norms += model.gate.bias.detach().double().pow(2)
    plan = topiarist.plan(model, X, structure="expert", budget=Budget(sparsity=0.5))
    (gone,) = plan.removed.values()
    assert set(gone.nonzero().flatten().tolist()) == set(norms.argsort()[:3].tolist())


def test_experts_are_no_channels_and_hidden_widths_are():
    model = Looked()
    axes = trace(model, X)
    assert [axis.name for axis in axes.axes if axis.is_expert] == ["up:0"]
    assert "up:0" not in {units.name for units in topiarist.structure.Channel().units(axes)}
    assert "up:2" in {units.name for units in topiarist.structure.Channel().units(axes)}


def test_ranks_that_choose_no_weights_stay_pinned():
    class Largest(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(5, 8), nn.Linear(2, 3)

        def forward(self, x):
            return self.b(self.a(x).topk(2, -1).values)

    class Arithmetic(Looked):
        def forward(self, x, logits=lambda z: z):
            weights, chosen = torch.softmax(self.gate(x), -1).topk(2, -1)
            return super().forward(x) + (chosen * weights).sum(-1, keepdim=True)  # the index is a number here

    assert trace(Largest(), X)["a.weight:0"].pins
    assert trace(Arithmetic(), X)["up:0"].pins


def test_a_network_without_experts_says_so():
    with pytest.raises(InputError, match="no expert that may go"):
        topiarist.plan(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.zeros(1, 4), structure="expert",
                       budget=Budget(macs=0.5))  # fmt: skip
