"""Bad input gets an error that says what was asked, what was found and what to try, and nothing is lost."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import topiarist
from topiarist import Budget
from topiarist.errors import BudgetError, InputError, TopiaristError, TraceError
from topiarist.plan import Plan
from topiarist.testing.invariants import half_of_every_axis, nothing_left_behind
from topiarist.testing.zoo import Net, build

HALF = Budget(sparsity=0.5)
STRUCTURES = ["weight", "channel"]


def loss(out, targets):
    return F.cross_entropy(out, targets)


def refused(model, inputs, error, message, call):
    """The call raises, with that message, and model, inputs and process are bit for bit as before."""
    with nothing_left_behind(model, inputs), pytest.raises(error, match=message) as raised:
        call()
    assert isinstance(raised.value, TopiaristError)


def plan_of(model, inputs, **kwargs):
    return topiarist.plan(model, inputs, **{"structure": "channel", "budget": HALF, **kwargs})


# -------------------------------------------------------------------------------------------------------- the budget


@pytest.mark.parametrize("entry", [topiarist.plan, topiarist.prune])
@pytest.mark.parametrize("sparsity", [-0.1, 1.5, float("nan"), float("inf")])
def test_a_sparsity_outside_its_range(entry, sparsity):
    model, inputs = build("mlp")
    refused(
        model,
        inputs,
        InputError,
        r"sparsity must lie in \[0, 1\]",
        lambda: entry(model, inputs, budget=Budget(sparsity=sparsity)),
    )


@pytest.mark.parametrize("ratio", [-0.1, 1.5, float("nan")])
def test_a_ratio_of_one_layer_outside_its_range(ratio):
    model, inputs = build("mlp")
    refused(
        model, inputs, InputError, r"\[0, 1\]", lambda: plan_of(model, inputs, allocation={"0": ratio}, budget=None)
    )


@pytest.mark.parametrize(("unit", "floor"), [("params", 0.01), ("macs", 0.001), ("bytes", 0.01), ("compression", 1000)])
def test_a_budget_that_cannot_be_reached_names_what_limits_it(unit, floor):
    model, inputs = build("mlp")
    refused(
        model,
        inputs,
        BudgetError,
        rf"asked for {unit}={floor:g}, nearest is {unit}=.*'0\.weight:0' keeps 1, '2\.weight:0' keeps 1",
        lambda: plan_of(model, inputs, budget=Budget(**{unit: floor})),
    )


def test_all_channels_cannot_go():
    model, inputs = build("lenet")
    refused(
        model,
        inputs,
        BudgetError,
        r"asked for sparsity=1, nearest is .* keeps 1",
        lambda: plan_of(model, inputs, budget=Budget(sparsity=1)),
    )


def test_no_budget_at_all():
    model, inputs = build("mlp")
    refused(model, inputs, InputError, "needs a budget; try", lambda: plan_of(model, inputs, budget=None))


# ------------------------------------------------------------------------------------------------- weights and scores


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(structure, value):
    model, inputs = build("mlp")
    with torch.no_grad():
        model[2].weight[1, 2] = value
    refused(model, inputs, InputError, r"2\.weight", lambda: plan_of(model, inputs, structure=structure))


@pytest.mark.parametrize(
    "score",
    [
        lambda slices: torch.full((slices.units.num,), float("nan")),
        lambda slices: torch.full((slices.units.num,), float("inf")),
        lambda slices: torch.zeros(slices.units.num + 1),
        lambda slices: torch.zeros(slices.units.num, dtype=torch.long),
        lambda slices: [0.0] * slices.units.num,
        lambda slices: None,
    ],
)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_scores_that_cannot_be_ranked(structure, score):
    model, inputs = build("mlp")
    refused(
        model, inputs, InputError, r"0\.weight", lambda: plan_of(model, inputs, structure=structure, saliency=score)
    )


def test_gradients_without_data_or_loss():
    model, inputs = build("mlp")
    refused(
        model, inputs, InputError, "pass data=batches", lambda: plan_of(model, inputs, saliency="gradient", data=[])
    )


@pytest.mark.parametrize(
    ("data", "message"), [([], "no batch|nothing|empty"), ([torch.zeros(3, 6)], "pair"), ([(1, 2, 3)], "pair")]
)
def test_data_that_yields_nothing_or_no_pairs(data, message):
    model, inputs = build("mlp")
    refused(
        model, inputs, InputError, message, lambda: plan_of(model, inputs, saliency="gradient", data=data, loss=loss)
    )


def test_a_loss_that_is_not_finite():
    model, inputs = build("mlp")
    data = [(inputs, torch.zeros(3, dtype=torch.long))]
    refused(
        model,
        inputs,
        TopiaristError,
        "loss of batch 1 is nan",
        lambda: plan_of(model, inputs, saliency="gradient", data=data, loss=lambda out, _: out.sum() * float("nan")),
    )


# -------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"structure": "chanel"}, "unknown structure 'chanel'.*nearest: channel"),
        ({"saliency": "l3"}, "'l3'.*nearest: l"),
        ({"allocation": "globl"}, "'globl'.*nearest: global"),
        ({"keep": ["head.*"]}, r"keep='head\.\*' matches no module"),
        ({"structure": "weight", "keep": ["head.*"]}, r"keep='head\.\*' matches no module"),
        ({"allocation": {"fc9": 0.5}, "budget": None}, "fc9"),
        ({"structure": "head"}, "no attention head that may go"),
    ],
)
def test_names_that_match_nothing(kwargs, message):
    model, inputs = build("mlp")
    refused(model, inputs, InputError, message, lambda: plan_of(model, inputs, **kwargs))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_keeping_everything_leaves_nothing_to_cut(structure):
    model, inputs = build("mlp")
    refused(model, inputs, InputError, "may go", lambda: plan_of(model, inputs, structure=structure, keep=["*"]))


def test_a_model_in_which_nothing_can_be_cut_says_why():
    model, inputs = build("uneven_chunk")
    refused(model, inputs, InputError, "no channel that may go.*with a remainder", lambda: plan_of(model, inputs))


def test_a_model_without_parameters():
    model, inputs = nn.Sequential(nn.ReLU()), torch.randn(2, 3)
    for structure in STRUCTURES:
        refused(model, inputs, InputError, "no .* that may go", lambda s=structure: plan_of(model, inputs, structure=s))


# ----------------------------------------------------------------------------------------------------- example inputs


def image_model():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 16, 5))


WRONG_INPUTS = {
    "too few dimensions": torch.randn(6),
    "too many channels": torch.randn(2, 4, 6, 6),
    "another size of image": torch.randn(2, 3, 7, 7),
    "another type": torch.zeros(2, 3, 6, 6, dtype=torch.long),
    "another device": torch.empty(2, 3, 6, 6, device="meta"),
    "too many arguments": (torch.randn(2, 3, 6, 6), torch.randn(2)),
    "no arguments": (),
    "an unknown keyword": {"image": torch.randn(2, 3, 6, 6)},
    "nothing": None,
    "a number": 3,
    "text": "two images",
    "NumPy": np.zeros((2, 3, 6, 6), dtype=np.float32),
    "an object": SimpleNamespace(x=1),
}


@pytest.mark.parametrize("what", WRONG_INPUTS)
def test_example_inputs_the_model_does_not_take(what):
    model, inputs = image_model(), WRONG_INPUTS[what]
    for call in (topiarist.trace, plan_of):
        refused(
            model,
            inputs,
            TraceError,
            "(?s)does not run on the example inputs.*check that",
            lambda c=call: c(model, inputs),
        )


def test_a_key_that_is_no_word():
    model = image_model()
    refused(model, None, InputError, "names of arguments", lambda: topiarist.trace(model, {3: torch.zeros(1)}))


@pytest.mark.parametrize(
    "inputs",
    [
        torch.randn(2, 3, 6, 6),
        (torch.randn(2, 3, 6, 6),),
        [torch.randn(2, 3, 6, 6)],
        {"input": torch.randn(2, 3, 6, 6)},
    ],
)
def test_every_form_of_inputs_is_taken(inputs):
    model = image_model()
    with nothing_left_behind(model, inputs):
        plan = plan_of(model, inputs)
        small = topiarist.shrink(model, plan, inputs)
        assert topiarist.verify(model, small, plan, inputs).passed
    assert plan.num_removed == 2


# ----------------------------------------------------------------------------------------------------------- the model


def test_a_model_whose_forward_fails():
    def forward(m, x):
        raise KeyError("not today")

    model = Net(forward, a=nn.Linear(3, 4))
    refused(model, torch.zeros(1), TraceError, "KeyError: 'not today'", lambda: plan_of(model, torch.zeros(2, 3)))


def test_a_model_that_fails_after_it_has_changed_itself():
    """The counter and the buffer that it writes before it fails are those of before."""

    def forward(m, x):
        m.calls += 1
        m.seen.add_(x.sum())
        if float(x.sum()) > -1e9:
            raise RuntimeError("too late")

    model = Net(forward, a=nn.Linear(3, 4), calls=0)
    model.register_buffer("seen", torch.zeros(100))
    inputs = torch.randn(2, 3)
    refused(model, inputs, TraceError, "too late", lambda: topiarist.trace(model, inputs))
    assert model.calls == 0


def test_a_model_that_cannot_be_copied():
    model = Net(lambda m, x: m.a(x), a=nn.Linear(3, 4))
    model.lock = threading.Lock()
    inputs = torch.randn(2, 3)
    with pytest.raises(InputError, match=r"cannot be copied \(.*lock.*copy\.deepcopy\(model\) must work"):
        topiarist.trace(model, inputs)


def test_what_is_no_model():
    for call in (topiarist.trace, plan_of):
        with pytest.raises(InputError, match=r"takes a torch\.nn\.Module, got function"):
            call(lambda x: x, torch.zeros(1))


def test_parameters_that_do_not_exist_yet():
    model = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(InputError, match="lazy"):
        topiarist.trace(model, torch.randn(2, 3))
    assert isinstance(model[0].weight, nn.UninitializedParameter)


# ------------------------------------------------------------------------------------------- a plan of another model


@pytest.mark.parametrize("other", ["lenet", "vit"])
def test_a_plan_for_another_model(other):
    model, inputs = build("mlp")
    plan = half_of_every_axis(*build(other)).plan
    refused(model, inputs, InputError, "made for|does not have", lambda: topiarist.mask(model, plan))
    refused(model, inputs, InputError, "made for|does not have", lambda: topiarist.shrink(model, plan, inputs))


def test_single_weights_cannot_be_shrunk():
    model, inputs = build("mlp")
    plan = topiarist.plan(model, inputs, budget=HALF)
    refused(model, inputs, InputError, "use topiarist.mask", lambda: topiarist.shrink(model, plan, inputs))


def test_a_verification_of_single_weights_is_refused():
    model, inputs = build("mlp")
    plan = Plan("weight", {"0.weight": torch.zeros(60, dtype=torch.bool)})
    refused(model, inputs, InputError, "single weights", lambda: topiarist.verify(model, model, plan, inputs))
