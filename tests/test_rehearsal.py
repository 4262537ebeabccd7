"""What Python hides of sizes: numbers and branches that follow from them are found by running a smaller model."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from topiarist import Budget, prune
from topiarist.graph import rehearsal, trace
from topiarist.graph.rehearsal import numbers_in
from topiarist.shrink import verify
from topiarist.testing.invariants import check_agreement, half_of_every_axis
from topiarist.testing.zoo import Net, build

aten = torch.ops.aten
COUNT = itertools.count()

# Each entry: what makes a number or another way of a weight of shape (8, 5), applied to h of shape (3, 8).
HIDDEN = {
    "a float on the left of a division": lambda h, w: h + (1.0 / w.shape[0]),
    "a float on the left of a product": lambda h, w: h + (0.5 * w.shape[0]),
    "a logarithm": lambda h, w: h * math.log(w.shape[0]),
    "len": lambda h, w: h / len(w),
    "numel of a shape": lambda h, w: h / w.shape.numel(),
    "numpy": lambda h, w: h * float(np.log(w.shape[0])),
    "a constant tensor": lambda h, w: h + torch.tensor(0.1 * w.shape[0]),
    "a fill value": lambda h, w: h + torch.full((3, 1), 0.1 * w.shape[0]),
    "a slope": lambda h, w: F.leaky_relu(h, 0.01 * w.shape[0]),
    "a branch": lambda h, w: h * 2 if w.shape[0] > 6 else h * 3,
    "a way that is not taken": lambda h, w: h * 2 if w.shape[0] > 6 else h,
    "a way that fails": lambda h, w: h[:, list(range(8))[: w.shape[0] + 100]].sum(1, keepdim=True) + h,
}


def between(code):
    """Three linear layers: ``code`` follows the first, and nothing the second."""
    parts = {"first": nn.Linear(5, 8), "second": nn.Linear(8, 6), "last": nn.Linear(6, 4)}
    return Net(lambda m, x: m.last(m.second(code(m.first(x), m.first.weight))), **parts), torch.randn(3, 5)


@pytest.mark.parametrize("name", HIDDEN)
def test_what_python_hides_is_pinned_with_its_line(name):
    model, inputs = between(HIDDEN[name])
    axes = trace(model, inputs)
    line = HIDDEN[name].__code__.co_firstlineno
    assert any(f"test_rehearsal.py:{line}" in reason for reason in axes["first.weight:0"].pins), axes.summary()
    assert axes.free == ["second.weight:0"]
    cut = half_of_every_axis(model, inputs)
    assert cut.plan.num_removed == 3
    check_agreement(cut, inputs)


def without_rehearsal(monkeypatch):
    monkeypatch.setattr(rehearsal, "faults", lambda *_: {})


@pytest.mark.parametrize("name", [n for n in HIDDEN if n not in ("a way that fails", "numpy", "len")])
def test_without_a_rehearsal_the_proof_fails(name, monkeypatch):
    without_rehearsal(monkeypatch)
    model, inputs = between(HIDDEN[name])
    cut = half_of_every_axis(model, inputs)
    assert "first.weight:0" in cut.plan.removed
    assert not verify(model, cut.small, cut.plan, inputs).passed


def test_of_many_axes_only_those_at_fault_are_pinned():
    def forward(m, x):
        for i, layer in enumerate(m.layers):
            x = layer(x) * (0.5 * layer.weight.shape[0] if i in (2, 5) else 1.0)
        return x

    layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(9)])
    model, inputs = Net(forward, layers=layers), torch.randn(3, 8)
    axes = trace(model, inputs)
    assert axes.free == [f"layers.{i}.weight:0" for i in range(8) if i not in (2, 5)]
    check_agreement(half_of_every_axis(model, inputs), inputs)


def test_a_branch_that_opens_with_less_than_half_is_not_seen_and_fails_the_proof():
    """The rehearsal cuts half: a way that the code takes below a quarter is found by the proof of the cut alone."""
    model, inputs = between(lambda h, w: h * 2 if w.shape[0] > 2 else h * 3)
    axes = trace(model, inputs)
    assert axes.free == ["first.weight:0", "second.weight:0"]


@pytest.mark.parametrize("draw", [random.random, np.random.random, lambda: next(COUNT) * 0.1])
def test_numbers_that_are_drawn_or_change_by_themselves_pin_nothing(draw):
    model, inputs = between(lambda h, w: h * (1.0 + draw()))
    assert trace(model, inputs).free == ["first.weight:0", "second.weight:0"]


@pytest.mark.parametrize("name", ["vit", "resnet_option_b", "recurrent_layers", "einsum_attention", "dense_block"])
def test_ordinary_nets_are_not_held_up(name, monkeypatch):
    model, inputs = build(name)
    rehearsed = trace(model, inputs).free
    without_rehearsal(monkeypatch)
    assert rehearsed == trace(model, inputs).free


def test_numbers_are_told_from_sizes():
    tensor = torch.ones(2, 3)
    assert numbers_in(aten.mul.Tensor, (tensor, 0.5), {}) == (0.5,)
    assert numbers_in(aten.view.default, (tensor, [3, 2]), {}) == ()
    assert numbers_in(aten.full.default, ([2, 3], 4), {"device": torch.device("cpu")}) == (4,)
    assert numbers_in(aten.lift_fresh.default, (torch.tensor([1.0, 2.0]),), {}) == (1.0, 2.0)
    assert numbers_in(aten.lift_fresh.default, (torch.ones(100),), {}) == ()
    assert numbers_in(aten.sum.dim_IntList, (tensor, [1], True), {}) == ()


def on_real_tensors_alone(code):
    """Three layers whose way depends on values, so that no tensors without values can rehearse them."""

    def forward(m, x):
        x = m.first(x)
        return m.last(m.second(code(x, m.first.weight) if float(x.detach().abs().sum()) >= 0 else x))

    parts = {"first": nn.Linear(5, 8), "second": nn.Linear(8, 6), "last": nn.Linear(6, 4)}
    return Net(forward, **parts), torch.randn(3, 5)


@pytest.mark.parametrize("name", ["a float on the left of a product", "a branch", "a way that is not taken"])
def test_what_only_real_tensors_show_is_excluded_before_anything_is_trained(name):
    model, inputs = on_real_tensors_alone(HIDDEN[name])
    assert trace(model, inputs).free == ["first.weight:0", "second.weight:0"]
    result = prune(model, inputs, structure="channel", budget=Budget(params=0.8))
    assert list(result.excluded) == ["first.weight:0"]
    assert "DIFFER" in result.excluded["first.weight:0"]
    assert list(result.plan.removed) == ["second.weight:0"]
    assert result.verification.passed


def test_a_fault_is_found_by_halves():
    def forward(m, x):
        for i, layer in enumerate(m.layers):
            x = layer(x) * (0.5 * layer.weight.shape[0] if i == 5 and float(x.detach().abs().sum()) >= 0 else 1.0)
        return x

    model, inputs = Net(forward, layers=nn.ModuleList([nn.Linear(8, 8) for _ in range(9)])), torch.randn(3, 8)
    result = prune(model, inputs, structure="channel", budget=Budget(params=0.7))
    assert list(result.excluded) == ["layers.5.weight:0"]
    assert len(result.plan.removed) == 7
