"""Structure layer: what can go, what is left in its place, and that it is the identity of a forward hook."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import topiarist
from topiarist import Budget
from topiarist.errors import BudgetError, FormatError, InputError
from topiarist.graph import trace
from topiarist.graph.bypass import Bypass
from topiarist.plan import Plan
from topiarist.shrink.precision import in_float64
from topiarist.structure.layer import candidates
from topiarist.testing.invariants import nothing_left_behind
from topiarist.testing.zoo import build

RESNET = lambda: topiarist.models.build("resnet20")  # noqa: E731
IMAGE = torch.zeros(1, 3, 32, 32)


class Block(nn.Module):
    """A residual block that returns a tuple, knows its number, and is told by name what it works on."""

    def __init__(self, place, width=6):
        super().__init__()
        self.place, self.kind = place, "full"
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 9), nn.Linear(9, width)

    def forward(self, hidden, mask=None, *, cache=None):
        return hidden + self.down(torch.tanh(self.up(self.norm(hidden)))), None


class Stream(nn.Module):
    """Blocks called by keyword, whose words and tuples the loop relies on."""

    def __init__(self, depth=4, place=lambda i: 7):
        super().__init__()
        self.first = nn.Linear(3, 6)
        self.blocks = nn.ModuleList(Block(place(i)) for i in range(depth))
        self.last = nn.Linear(6, 2)

    def forward(self, x):
        hidden = self.first(x)
        for block in self.blocks:
            assert block.kind == "full"
            hidden, nothing = block(hidden=hidden, mask=x)
            assert nothing is None
        return self.last(hidden)


def plain():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2))


# -------------------------------------------------------------------------------------------------------- what can go


@pytest.mark.parametrize(
    ("model", "inputs", "expected"),
    [
        (plain(), torch.zeros(1, 4), ["2", "4"]),
        (Stream(), torch.zeros(2, 3), [f"blocks.{i}" for i in range(4)]),
        (RESNET(), IMAGE, ["layer1.0", "layer1.1", "layer1.2", "layer2.1", "layer2.2", "layer3.1", "layer3.2"]),
        (*build("vit"), ["blocks.0", "blocks.1"]),
        (*build("transformer_encoder"), ["1.layers.0", "1.layers.1"]),
    ],
)
def test_what_may_go_is_the_outermost_that_repeats(model, inputs, expected):
    assert candidates(trace(model, inputs)) == expected


def test_no_candidate_lies_in_another_and_single_layers_stand_back():
    class Mixed(nn.Sequential):
        pass

    blocks = [Block(0) for _ in range(2)]
    model = nn.Sequential(nn.Linear(6, 6), Mixed(*(nn.Sequential(nn.Linear(6, 6)) for _ in range(2))), nn.Linear(6, 6))
    assert candidates(trace(model, torch.zeros(1, 6))) == ["0", "1.0.0", "1.1.0", "2"]

    class Tuples(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks, self.linear = nn.ModuleList(blocks), nn.ModuleList(nn.Linear(6, 6) for _ in range(2))

        def forward(self, x):
            for linear, block in zip(self.linear, self.blocks, strict=True):
                x = block(linear(x))[0]
            return x

    assert candidates(trace(Tuples(), torch.zeros(1, 6))) == ["blocks.0", "blocks.1"]


def test_layers_that_hold_their_number_keep_the_first():
    units = topiarist.structure.Layer().units(trace(Stream(place=lambda i: i), torch.zeros(2, 3)))
    assert units[0].modules == ("blocks.1", "blocks.2", "blocks.3")


def test_keep_keeps_and_says_when_it_matches_nothing():
    axes = trace(Stream(), torch.zeros(2, 3))
    (units,) = topiarist.structure.Layer().units(axes, ["blocks.[01]"])
    assert (units.modules, units.kind, units.layer, units.minimum) == (("blocks.2", "blocks.3"), "Block", "blocks", 1)
    with pytest.raises(InputError, match="matches no module"):
        topiarist.structure.Layer().units(axes, ["block.0"])


def test_a_model_without_such_layers_says_so():
    with pytest.raises(InputError, match="no layer that may go"):
        topiarist.plan(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 4)), torch.zeros(1, 4), structure="layer",
                       budget=Budget(macs=0.5))  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- the result

NETS = {"plain": (plain, torch.randn(5, 4)), "stream": (Stream, torch.randn(5, 3)), "resnet": (RESNET, IMAGE)}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("unit", ["macs", "params", "bytes", "sparsity"])
def test_what_is_left_is_the_identity_of_a_hook_and_costs_what_was_said(name, unit, tmp_path):
    make, inputs = NETS[name]
    torch.manual_seed(0)
    model = make().eval()
    value = {"sparsity": 0.5}.get(unit, 0.95 if name == "resnet" else 0.8)
    with nothing_left_behind(model, inputs):
        result = topiarist.prune(model, inputs, structure="layer", budget=Budget(**{unit: value}))
    small, plan = result.model, result.plan
    assert result.verification.passed
    assert result.verification.error == 0
    assert plan.bypassed
    assert Plan.from_json(plan.to_json()) == plan
    hooked = copy.deepcopy(model)
    for gone in plan.bypassed:
        layer = hooked.get_submodule(gone)
        layer.register_forward_hook(
            lambda m, args, kwargs, out: (
                (kwargs["hidden"], None) if isinstance(out, tuple) else args[0] if args else kwargs["hidden"]
            ),
            with_kwargs=True,
        )
    with torch.no_grad():
        torch.testing.assert_close(small.eval()(inputs), hooked(inputs), rtol=0, atol=0)
    before, after = topiarist.measure(model, inputs), topiarist.measure(small, inputs)
    assert plan.achieved["macs"] == pytest.approx(after.macs / before.macs, abs=1e-12)
    assert plan.achieved["params"] == pytest.approx(after.num_params / before.num_params, abs=1e-12)
    assert plan.achieved["bytes"] == pytest.approx(after.bytes_in_memory / before.bytes_in_memory, abs=1e-12)
    loaded = topiarist.load(topiarist.save(small, tmp_path, plan=plan), build=make).eval()
    assert [type(m) for m in loaded.modules()] == [type(m) for m in small.modules()]
    with torch.no_grad():
        torch.testing.assert_close(loaded(inputs), small(inputs), rtol=0, atol=0)
    again = topiarist.load(topiarist.save(loaded, tmp_path / "again"), build=make)
    assert again.state_dict().keys() == small.state_dict().keys()


def test_a_bypass_that_does_something_is_caught():
    torch.manual_seed(0)
    model, inputs = Stream(), torch.randn(5, 3)
    plan = Plan("layer", {"Block": torch.tensor([True])}, bypassed={"blocks.1": "(x,-)"})
    wrong = topiarist.shrink(model, plan)
    wrong.blocks[1].register_forward_hook(lambda m, a, out: (out[0] * 1.001, None))
    assert not topiarist.verify(model, wrong, plan, inputs).passed
    assert topiarist.verify(model, topiarist.shrink(model, plan), plan, inputs).passed


def test_removing_a_block_whose_branch_is_zero_changes_nothing():
    torch.manual_seed(0)
    model, inputs = Stream(), torch.randn(5, 3)
    for parameter in model.blocks[2].down.parameters():
        nn.init.zeros_(parameter)
    small = topiarist.shrink(model, Plan("layer", {"Block": torch.tensor([True])}, bypassed={"blocks.2": "(x,-)"}))
    with torch.no_grad():
        torch.testing.assert_close(small(inputs), model(inputs), rtol=0, atol=0)


def test_scores_are_those_of_all_parameters_of_a_layer():
    torch.manual_seed(0)
    model = Stream()
    norms = [sum(float(p.detach().double().pow(2).sum()) for p in b.parameters()) ** 0.5 for b in model.blocks]
    plan = topiarist.plan(model, torch.zeros(2, 3), structure="layer", budget=Budget(sparsity=0.25))
    assert [*plan.bypassed] == [f"blocks.{norms.index(min(norms))}"]


def test_a_mask_hands_inputs_on_while_others_train_and_comes_off():
    torch.manual_seed(0)
    model, inputs = Stream(), torch.randn(5, 3)
    before = model(inputs).detach()
    plan = Plan("layer", {"Block": torch.tensor([True])}, bypassed={"blocks.1": "(x,-)", "blocks.3": "(x,-)"})
    with nothing_left_behind(model, inputs):
        topiarist.mask(model, plan)
        masked = model(inputs)
        masked.sum().backward()
        assert model.blocks[1].up.weight.grad is None
        assert model.blocks[0].up.weight.grad is not None
        model.zero_grad(set_to_none=True)
        topiarist.unmask(model)
    torch.testing.assert_close(masked, topiarist.shrink(model, plan)(inputs), rtol=0, atol=0)
    assert not torch.equal(masked, before)
    with pytest.raises(InputError, match="does not have"):
        topiarist.mask(model, Plan("layer", {}, bypassed={"blocks.9": "x"}))


def test_a_schedule_takes_layer_after_layer():
    torch.manual_seed(0)
    result = topiarist.prune(
        RESNET(), IMAGE, structure="layer", budget=Budget(sparsity=5 / 7), schedule="linear", steps=3
    )
    assert [row["sparsity"] for row in result.curve] == pytest.approx([2 / 7, 3 / 7, 5 / 7])
    assert sum(isinstance(m, Bypass) for m in result.model.modules()) == 5


def test_a_layer_held_in_two_places_goes_from_both_and_tied_weights_stay():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
            self.again, self.c.weight = self.b, self.a.weight

        def forward(self, x):
            return self.c(self.again(torch.tanh(self.b(self.a(x)))))

    model, inputs = Twice(), torch.randn(2, 4)
    for gone in ("a", "b"):
        planner_plan = Plan("layer", {"Linear": torch.tensor([True])}, bypassed={gone: "x"})
        small = topiarist.shrink(model, planner_plan, inputs)
        axes = trace(model, inputs).without([gone])
        assert axes.num_params() == sum(p.numel() for p in small.parameters())
        assert axes.num_macs() == topiarist.measure(small, inputs).macs
        assert topiarist.verify(model, small, planner_plan, inputs).passed


def test_what_makes_no_sense_is_refused(tmp_path):
    model, inputs = Stream(), torch.zeros(2, 3)
    with pytest.raises(InputError, match="round_to is for structure 'channel'"):
        topiarist.plan(model, inputs, structure="layer", round_to=8, budget=Budget(macs=0.5))
    with pytest.raises(InputError, match="uniform"):
        topiarist.plan(model, inputs, structure="layer", uniform="config", budget=Budget(macs=0.5))
    with pytest.raises(BudgetError, match="keeps 1"):
        topiarist.plan(model, inputs, structure="layer", budget=Budget(macs=0.01))
    with pytest.raises(InputError, match="try structure='weight'"):
        topiarist.plan(model, inputs, structure="layer", allocation=topiarist.allocation.Threshold(0.5))
    with pytest.raises(InputError, match="form"):
        Bypass("x;import os")
    small = topiarist.shrink(model, Plan("layer", {}, bypassed={"blocks.3": "(x,-)"}))
    with pytest.raises(FormatError, match=r"no module 'blocks\.3'"):
        topiarist.load(topiarist.save(small, tmp_path), build=lambda: Stream(3))


def test_the_copy_in_float64_has_bypasses_too():
    small = topiarist.shrink(Stream(), Plan("layer", {}, bypassed={"blocks.3": "(x,-)"}))
    assert in_float64(small)(torch.zeros(1, 3, dtype=torch.float64)).dtype == torch.float64
