"""Layers that hand on more than one tensor: which of them can go, what stands in their place, and why others stay."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import topiarist
from topiarist import Budget
from topiarist.errors import InputError
from topiarist.graph import trace
from topiarist.graph.forms import check_form, hand_on, written
from topiarist.plan import Plan
from topiarist.structure.layer import candidates, staying
from topiarist.testing.invariants import nothing_left_behind
from topiarist.testing.zoo import Net, build

FORMS = {
    "layers_with_a_shared_bias": "(x,@2:bias,-)",
    "layers_of_two_streams": "(x,@:residual)",
    "layers_of_states": "{hidden:@0:state.hidden,mask:@0:state.mask,seen:[@0:state.seen.0]}",
}
LATER = [f"layers.{i}" for i in (1, 2, 3)]


def without_branches(model, names):
    """The oracle: what the layers add to what they are given is zero."""
    zeroed = copy.deepcopy(model).double().eval()
    for name in names:
        nn.init.zeros_(zeroed.get_submodule(name).down.weight)
    return zeroed


def gap(model, other, inputs):
    with torch.no_grad():
        a, b = model(inputs), other(inputs)
    return float((a - b).abs().max() / a.abs().max())


def made(name):
    model, inputs = build(name)
    return model.double().eval(), inputs.double()


@pytest.mark.parametrize("name", FORMS)
def test_layers_that_hand_more_on_can_go_but_for_one_that_makes_it(name):
    axes = trace(*made(name))
    assert candidates(axes) == (LATER if name != "layers_of_states" else ["layers.0", *LATER])
    assert {axes.bypasses[layer] for layer in candidates(axes)} == {FORMS[name]}


@pytest.mark.parametrize("name", FORMS)
def test_what_is_left_is_the_network_whose_branches_are_zero(name, tmp_path):
    model, inputs = made(name)
    with nothing_left_behind(model, inputs):
        result = topiarist.prune(model, inputs, structure="layer", budget=Budget(sparsity=2 / 3))
    gone = list(result.plan.bypassed)
    assert len(gone) >= 2
    assert result.verification.passed
    fresh = torch.randn_like(inputs)
    small = result.model.eval()
    assert gap(without_branches(model, gone), small, fresh) <= 1e-9
    assert gap(without_branches(model, gone[:1]), small, fresh) > 1e-4
    loaded = topiarist.load(topiarist.save(small, tmp_path, plan=result.plan), build=lambda: build(name)[0].double())
    assert gap(loaded.eval(), small, fresh) == 0
    topiarist.mask(model, result.plan)
    assert gap(model, small, fresh) <= 1e-12


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("layers_of_two_streams", "(x,x)"),
        ("layers_of_states", FORMS["layers_of_states"].replace("@0:state.mask", "@0:state.hidden")),
    ],
)
def test_handing_on_something_else_is_caught(name, wrong):
    model, inputs = made(name)
    right = Plan("layer", {}, bypassed={"layers.2": FORMS[name]})
    assert gap(without_branches(model, ["layers.2"]), topiarist.shrink(model, right), inputs) <= 1e-9
    sabotaged = topiarist.shrink(model, Plan("layer", {}, bypassed={"layers.2": wrong}))
    assert gap(without_branches(model, ["layers.2"]), sabotaged, inputs) > 1e-4
    assert not topiarist.verify(model, sabotaged, right, inputs).passed


def test_a_bias_that_is_dropped_is_missed_by_the_next_layer():
    model, inputs = made("layers_with_a_shared_bias")
    dropped = topiarist.shrink(model, Plan("layer", {}, bypassed={"layers.2": "(x,-,-)"}))
    with pytest.raises(AssertionError):
        dropped(inputs)


def test_all_may_go_but_the_one_that_stays_in_any_case():
    model, inputs = made("layers_with_a_shared_bias")
    (units,) = topiarist.structure.Layer().units(trace(model, inputs))
    assert (units.minimum, units.modules) == (0, tuple(LATER))
    result = topiarist.prune(model, inputs, structure="layer", budget=Budget(sparsity=1.0))
    assert gap(without_branches(model, LATER), result.model.eval(), inputs) <= 1e-9


def test_why_a_layer_stays_is_said():
    model, inputs = made("layers_with_a_shared_bias")
    assert staying(trace(model, inputs)) == {"layers.0": "it makes what it returns at 1, and layers.1 uses it"}
    with pytest.raises(InputError, match=r"layers\.0 stays: it makes what it returns at 1"):
        topiarist.plan(model, inputs, structure="layer", keep=["layers.[123]"], budget=Budget(sparsity=0.5))


class Counting(nn.Module):
    """Returns beside x what is used, or not, by others that are no layers."""

    def __init__(self):
        super().__init__()
        self.down = nn.Linear(4, 4)

    def forward(self, x):
        change = self.down(x)
        return x + change, change


@pytest.mark.parametrize(
    ("use", "form"),
    [
        (lambda m, extra: 0, "(x,-)"),
        (lambda m, extra: extra.mean(), None),
        (lambda m, extra: extra.mean() if m.training else 0, None),
        (lambda m, extra: extra.shape[0], None),
        (lambda m, extra: torch.stack([extra, extra]).sum(), None),
    ],
)
def test_what_is_used_elsewhere_keeps_the_layer_in_either_mode(use, form):
    def forward(m, x):
        for layer in m.layers:
            x, extra = layer(x)
            x = m.mix(x) + use(m, extra)
        return x

    net = Net(forward, layers=nn.ModuleList(Counting() for _ in range(3)), mix=nn.Linear(4, 4))
    axes = trace(net, torch.randn(2, 4))
    assert [axes.bypasses.get(f"layers.{i}") for i in range(3)] == [form] * 3


def test_what_the_model_returns_is_used():
    net = Net(lambda m, x: [each for layer in m.layers for each in layer(x)], layers=nn.ModuleList([Counting()]))
    axes = trace(net, torch.randn(2, 4))
    assert axes.makers_beside["layers.0"] == "it makes what it returns at 1, and the model returns it"


def test_states_in_places_that_change_are_no_inputs():
    class Turning(nn.Module):
        def __init__(self):
            super().__init__()
            self.down = nn.Linear(4, 4)

        def forward(self, x, a, b):
            return x + self.down(x) * a, a + 1, b + 2

    def forward(m, x):
        a, b = x, x * 2
        for i, layer in enumerate(m.layers):
            x, a, b = layer(x, *((a, b) if i % 2 else (b, a)))
        return x + a + b

    net = Net(forward, layers=nn.ModuleList(Turning() for _ in range(5)))
    axes = trace(net, torch.randn(2, 4))
    assert not axes.bypasses.keys() & {f"layers.{i}" for i in range(5)}


# ----------------------------------------------------------------------------------------------------------- the words


def test_forms_are_read_as_they_are_written():
    out = ("x", [None, {"a": "y"}], ())
    leaf = {"0": "x", "1.0": "-", "1.1.a": "@1:mask.b.0"}
    form = written(out, leaf)
    assert form == "(x,[-,{a:@1:mask.b.0}],())"
    one, two = torch.ones(1), torch.zeros(1)
    assert hand_on(form, (one,), {"mask": {"b": [two]}}) == (one, [None, {"a": two}], ())
    assert hand_on(form, (one, {"b": (two,)}), {}) == (one, [None, {"a": two}], ())
    assert hand_on(form, (one,), {}) == (one, [None, {"a": None}], ())


@pytest.mark.parametrize(
    "form", ["", "x,-", "(x", "(x,)", "(x;-)", "{x}", "{a:x", "@", "@x", "x.y", "__import__('os')"]
)
def test_what_is_no_form_is_refused(form):
    with pytest.raises(InputError, match="form such as"):
        check_form(form)
