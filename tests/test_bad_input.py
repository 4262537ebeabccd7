"""Bad input gets an error that says what was asked, what was found and what to try, and nothing is lost."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.prune import random_unstructured

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


# ------------------------------------------------------------------------------------------- arguments of another kind

LOSS = "a loss is a function of outputs and targets"
OF_ANOTHER_KIND = {
    "a number for a budget": (
        {"budget": 0.5},
        r"a budget is a Budget, got float 0\.5; try budget=Budget\(",
    ),
    "a dict for a budget": ({"budget": {"macs": 0.5}}, r"a budget is a Budget, got dict \{'macs': 0\.5\}"),
    "no structure": ({"structure": None}, r"a structure is a word of \['weight', .* got None"),
    "a class for a structure": ({"structure": topiarist.structure.Channel}, "a structure is a word of .* got <class"),
    "an index to keep": ({"keep": [0]}, r"keep is patterns over the names of modules, .*, got int 0"),
    "a module to keep": ({"keep": [nn.ReLU()]}, r"keep is patterns over the names of modules, .*, got ReLU"),
    "a number to keep": ({"keep": 3}, r"keep is patterns over the names of modules, .*, got int 3"),
    "a word for a loss": ({"saliency": "gradient", "loss": "cross-entropy"}, f"{LOSS}, got str 'cross-entropy'; try "),
    "a class for a loss": (
        {"saliency": "gradient", "loss": nn.CrossEntropyLoss},
        rf"{LOSS}, got the class CrossEntropyLoss; try CrossEntropyLoss\(\)",
    ),
    "a dict of losses": (
        {"saliency": "gradient", "loss": lambda out, targets: {"loss": out.sum()}},
        r"one number .* it holds \['loss'\]: return one of them",
    ),
    "one batch for data": (
        {"saliency": "gradient", "data": (torch.zeros(3, 6), torch.zeros(3, dtype=torch.long))},
        r"pair \(inputs, targets\), got a Tensor; .* \[\(inputs, targets\)\] where there is one",
    ),
}


@pytest.mark.parametrize("what", OF_ANOTHER_KIND)
def test_an_argument_of_another_kind(what):
    (model, inputs), (kwargs, message) = build("mlp"), OF_ANOTHER_KIND[what]
    batches = [(inputs, torch.zeros(len(inputs), dtype=torch.long))]
    told = {"data": batches, "loss": loss, **kwargs}
    refused(model, inputs, InputError, message, lambda: plan_of(model, inputs, **told))


@pytest.mark.parametrize("value", ["half", True, float, [0.5]])
def test_a_budget_that_is_no_number(value):
    with pytest.raises(InputError, match="sparsity is a number, got"):
        Budget(sparsity=value)


def test_budgets_of_numpy_are_numbers():
    assert Budget(sparsity=np.float32(0.5)) == HALF


@pytest.mark.parametrize("structure", STRUCTURES)
def test_one_pattern_to_keep_may_stand_alone(structure):
    """It is text, not the characters that it has: "*2" is no "*", which would keep everything."""
    model, inputs = build("mlp")
    whole = plan_of(model, inputs, structure=structure, keep=["*2"])
    assert plan_of(model, inputs, structure=structure, keep="*2") == whole
    assert plan_of(model, inputs, structure=structure) != whole


@pytest.mark.parametrize("steps", [0, -1, 2.5, "2", True])
def test_steps_that_are_no_number_of_steps(steps):
    model, inputs = build("mlp")
    told = {"budget": HALF, "schedule": "linear", "steps": steps}
    message = "steps must be a whole number, 1 or more, got"
    refused(model, inputs, InputError, message, lambda: topiarist.prune(model, inputs, **told))


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"end": 10.5}, "end must be a whole number"),
        ({"end": 10, "every": 0}, "every must be a whole number"),
        ({"end": 10, "begin": -1}, "begin must be a whole number"),
        ({"end": 10, "budget": 0.5}, "a budget is a Budget, got float"),
        ({"end": 0}, "there must be one"),
    ],
)
def test_a_pruner_that_is_told_what_it_cannot_do(told, message):
    model, inputs = build("mlp")
    refused(model, inputs, InputError, message, lambda: topiarist.Pruner(model, inputs, **{"budget": HALF, **told}))


def test_a_result_where_its_model_or_plan_is_meant(tmp_path):
    model, inputs = build("mlp")
    result = topiarist.prune(model, inputs, structure="channel", budget=HALF)
    for call in (
        lambda: topiarist.measure(result, inputs),
        lambda: topiarist.verify(model, result, result.plan, inputs),
        lambda: topiarist.save(result, tmp_path),
        lambda: topiarist.trace(result, inputs),
        lambda: topiarist.unmask(result),
    ):
        with pytest.raises(InputError, match=r"a model is a torch\.nn\.Module, got PruneResult; try its \.model"):
            call()
    for call in (lambda: topiarist.mask(model, result), lambda: topiarist.shrink(model, result, inputs)):
        with pytest.raises(InputError, match=r"a plan is a Plan, got PruneResult; try its \.plan"):
            call()


def test_model_and_others_in_the_wrong_order(tmp_path):
    model, inputs = build("mlp")
    plan = plan_of(model, inputs)
    for call in (lambda: plan_of(inputs, model), lambda: topiarist.save(tmp_path, model)):
        with pytest.raises(InputError, match=r"a model is a torch\.nn\.Module, got (Tensor|PosixPath)"):
            call()
    for call in (lambda: topiarist.shrink(model, inputs, plan), lambda: topiarist.mask(model, plan.to_json())):
        with pytest.raises(InputError, match=r"a plan is a Plan, got (Tensor|str)"):
            call()


@pytest.mark.parametrize(
    ("build_it", "message"),
    [
        (nn.Linear(6, 5), r"build makes the original model when it is called, got Linear; try build=MyNet"),
        (None, r"build makes the original model when it is called, got NoneType"),
        (nn.Linear, r"called without arguments, and Linear takes some .*try build=lambda: Linear"),
    ],
)
def test_a_build_that_cannot_be_called(tmp_path, build_it, message):
    topiarist.save(nn.Linear(6, 5), tmp_path)
    with pytest.raises(InputError, match=message):
        topiarist.load(tmp_path, build=build_it)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (0.5, "evaluate returns a dict of numbers by name, got float"),
        ({"accuracy": "good"}, "what evaluate returns as 'accuracy' is a number, got str 'good'"),
        ({3: 0.5}, "evaluate names each number"),
    ],
)
def test_an_evaluation_that_is_no_numbers_by_name(found, message):
    model, inputs = build("mlp")
    told = {"budget": HALF, "evaluate": lambda work: found}
    refused(model, inputs, InputError, message, lambda: topiarist.prune(model, inputs, **told))


def test_an_evaluation_may_return_what_holds_one_number(tmp_path):
    """In a folder too, where rows are JSON."""
    model, inputs = build("mlp")
    found = {"a": torch.tensor(0.5), "b": np.float32(0.25), "c": 1}
    told = {"budget": HALF, "evaluate": evaluation_of(found), "folder": tmp_path}
    rows = [row for _ in range(2) for row in topiarist.prune(model, inputs, **told).curve]
    assert [{k: row[k] for k in "abc"} for row in rows] == 2 * [{"a": 0.5, "b": 0.25, "c": 1}]


def evaluation_of(found):
    return lambda work: found


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_compiled_code_cannot_be_cut():
    model, inputs = image_model().eval(), torch.randn(2, 3, 6, 6)
    for code in (torch.jit.script(model), torch.jit.trace(model, inputs)):
        with pytest.raises(InputError, match=r"code that torch\.jit has fixed; pass the module that it was made of"):
            topiarist.trace(code, inputs)


def test_recovery_trains_where_gradients_are_off():
    model, inputs = build("mlp")
    batches = [(inputs, torch.zeros(len(inputs), dtype=torch.long))]
    told = {"budget": HALF, "recover": "fine-tune", "data": batches, "loss": loss}
    expected = topiarist.prune(model, inputs, **told)
    with torch.no_grad():
        found = topiarist.prune(model, inputs, **told)
        assert not torch.is_grad_enabled()
    assert [row["loss"] for row in found.history] == [row["loss"] for row in expected.history]
    assert not torch.equal(found.model[0].weight, topiarist.prune(model, inputs, budget=HALF).model[0].weight)


@pytest.mark.parametrize("told", [{"loss": "mse"}, {"loss": lambda out, targets: {"loss": out.sum()}}])
def test_recovery_with_what_is_no_loss(told):
    model, inputs = build("mlp")
    told = {"budget": HALF, "data": [(inputs, torch.zeros(len(inputs)))], "recover": "fine-tune", **told}
    message = "a loss is a function|one number"
    refused(model, inputs, InputError, message, lambda: topiarist.prune(model, inputs, **told))


@pytest.mark.parametrize("what", ["other options", "another model"])
def test_a_folder_of_another_run_says_what_is_other(tmp_path, what):
    model, inputs = build("mlp")
    topiarist.prune(model, inputs, budget=HALF, folder=tmp_path)
    budget, message = HALF, "of another model, or other weights"
    if what == "other options":
        budget = Budget(sparsity=0.25)
        message = r"of other options \(budget: Budget\(sparsity=0\.5\).* there, Budget\(sparsity=0\.25\).* now\)"
    else:
        model[0].weight.data.add_(1)
    with pytest.raises(InputError, match=message):
        topiarist.prune(model, inputs, budget=budget, folder=tmp_path)


def test_a_folder_that_is_a_file(tmp_path):
    model, inputs = build("mlp")
    (tmp_path / "run").write_text("mine")
    told = {"budget": HALF, "folder": tmp_path / "run"}
    refused(model, inputs, InputError, "kept in a folder", lambda: topiarist.prune(model, inputs, **told))


def test_a_network_for_a_method_of_trees():
    model, inputs = build("mlp")
    data = [(inputs, torch.zeros(len(inputs), dtype=torch.long))]
    for prune in (topiarist.methods.cost_complexity, topiarist.methods.reduced_error):
        with pytest.raises(InputError, match=r"prunes a topiarist\.models\.DecisionTree, got Sequential"):
            prune(model, inputs, data=data)


def masked_by_torch():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))
    random_unstructured(model[0], "weight", amount=0.25)
    return model


def normed_by_a_hook():
    return nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 5))


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`")
@pytest.mark.parametrize("make", [masked_by_torch, normed_by_a_hook])
def test_a_weight_that_holds_the_graph_which_computed_it(make):
    """It cannot be copied; once the model has run without gradients, it can."""
    model, inputs = make(), torch.randn(3, 6)
    for structure in STRUCTURES:
        with pytest.raises(InputError, match=r"0\.weight holds the graph .* run the model once inside torch\.no_grad"):
            topiarist.prune(model, inputs, structure=structure, budget=HALF)
    with torch.no_grad():
        model(inputs)
    result = topiarist.prune(model, inputs, structure="channel", budget=HALF)
    assert result.model[2].in_features == 4
    assert result.verification.passed


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
        with pytest.raises(InputError, match=r"is a torch\.nn\.Module, got function"):
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
