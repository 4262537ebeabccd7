"""Recurrent layers have one rule for all steps: it says what spelling them out says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from topiarist.graph import trace
from topiarist.graph.readers import READERS
from topiarist.graph.rules.recurrent import recurrent_functions
from topiarist.testing.invariants import (
    check_agreement,
    check_bill,
    cut_axes,
    half_of_every_axis,
    is_caught,
    shifted_plans,
)
from topiarist.testing.zoo import Net

LAYERS = {
    "lstm": lambda: nn.LSTM(4, 6),
    "two layers": lambda: nn.LSTM(4, 6, num_layers=2, batch_first=True),
    "both directions": lambda: nn.LSTM(4, 6, num_layers=2, bidirectional=True),
    "no biases": lambda: nn.GRU(4, 6, bias=False),
    "gru in both directions": lambda: nn.GRU(4, 6, num_layers=2, bidirectional=True, batch_first=True),
    "tanh": lambda: nn.RNN(4, 6),
    "relu": lambda: nn.RNN(4, 6, nonlinearity="relu", num_layers=2),
    "projected": lambda: nn.LSTM(4, 8, proj_size=6, num_layers=2),
}
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")


def between(name, on_real_tensors=False):
    """A recurrent layer between two linear ones; a look at a value keeps tensors without values out."""

    def forward(m, x):
        x = m.first(x)
        assert not on_real_tensors or float(x.detach().abs().sum()) >= 0
        out, state = m.layer(x)
        return m.last(out), state

    layer = LAYERS[name]()
    width = 12 if layer.bidirectional else 6
    return Net(forward, first=nn.Linear(3, 4), layer=layer, last=nn.Linear(width, 2)), torch.randn(5, 2, 3)


@pytest.mark.parametrize("on_real_tensors", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_what_enters_can_go_and_what_is_returned_stays(name, on_real_tensors):
    """The last states are outputs of the model: what they are made of is pinned for that and nothing else."""
    model, inputs = between(name, on_real_tensors)
    axes = trace(model, inputs)
    assert axes.free == ["first.weight:0"]
    cut = half_of_every_axis(model, inputs)
    assert cut.plan.num_removed == 2
    check_agreement(cut, inputs)
    assert is_caught(model, next(shifted_plans(cut, "first.weight:0")), inputs)


def only_steps(name):
    """The same net, of which all steps are returned and no states."""
    model, inputs = between(name)
    model.function = lambda m, x: m.last(m.layer(m.first(x))[0])
    return model, inputs


@pytest.mark.parametrize("name", LAYERS)
def test_hidden_units_go(name):
    model, inputs = only_steps(name)
    cut = half_of_every_axis(model, inputs)
    num_projected = 1 if name == "projected" else 0
    assert len(cut.plan.removed) == 2 + num_projected
    assert not cut.plan.inexact
    for axis in cut.plan.removed:
        check_agreement(cut_axes(model, cut.axes, {axis: torch.arange(cut.axes[axis].size) == 1}), inputs)
        assert any(is_caught(model, plan, inputs) for plan in shifted_plans(cut, axis))
    check_agreement(cut, inputs)
    check_bill(cut.axes, {}, model, inputs)
    check_bill(cut.axes, cut.plan.removed, cut.small, inputs)
    assert cut.small.layer.hidden_size == model.layer.hidden_size // 2


@pytest.mark.parametrize("name", LAYERS)
def test_spelling_out_the_steps_says_the_same(name, monkeypatch):
    model, inputs = only_steps(name)
    short = trace(model, inputs)
    for function in recurrent_functions():
        monkeypatch.delitem(READERS, function)
    long = trace(model, inputs)
    tied = [[{(m.tensor, m.dim) for m in a.members} for a in axes.axes if not a.pins] for axes in (short, long)]
    assert tied[0] == tied[1]
    assert short.num_macs() == long.num_macs()


def test_states_that_are_given_are_tied():
    def forward(m, x):
        return m.last(m.layer(m.first(x), (m.h.expand(1, 2, -1), m.c.expand(1, 2, -1)))[0])

    states = {name: nn.Parameter(torch.randn(1, 1, 6)) for name in "hc"}
    model = Net(forward, first=nn.Linear(3, 4), layer=nn.LSTM(4, 6), last=nn.Linear(6, 2), **states)
    cut = half_of_every_axis(model, torch.randn(5, 2, 3))
    assert {"h", "c", "layer.weight_hh_l0", "last.weight"} <= cut.plan.slices.keys()
    check_agreement(cut, torch.randn(5, 2, 3))


def test_the_time_is_not_cut_and_says_why():
    def forward(m, x):
        return m.last(m.layer((m.first @ x).transpose(0, 1))[0].sum(1))

    model = Net(forward, first=nn.Parameter(torch.randn(7, 5)), layer=nn.GRU(3, 6), last=nn.Linear(6, 2))
    axes = trace(model, torch.randn(2, 5, 3))
    assert any("a recurrent layer runs along it" in reason for reason in axes["first:0"].pins)
