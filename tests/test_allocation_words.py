"""Words of allocations, in Python and in recipes; the tolerance rule; and how many units must stay."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import topiarist
from topiarist.allocation import (
    Candidates,
    Cell,
    ErdosRenyi,
    Global,
    Knapsack,
    Owl,
    SensitivityTable,
    Smallest,
    Threshold,
    Tolerance,
    needs_table,
    resolve,
    takes_budget,
)
from topiarist.allocation.least import with_minimum
from topiarist.allocation.words import WORDS
from topiarist.cli.recipe import make
from topiarist.errors import BudgetError, InputError
from topiarist.plan import Budget, Units

NET = nn.Sequential(nn.Linear(4, 10), nn.ReLU(), nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 2))
X = torch.zeros(1, 4)


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("erk", ErdosRenyi()),
        ("er", ErdosRenyi(kernel=False)),
        ("global:gaussian", Global("gaussian")),
        ("owl:3:0.1:layer", Owl(3.0, 0.1, "layer")),
        ("knapsack:params:8", Knapsack("params", 8)),
        ("threshold:0.5", Threshold(0.5)),
        ("smallest:1000", Smallest(1000)),
        ("smallest:3:layer", Smallest(3, "layer")),
    ],
)
def test_words_with_arguments(word, expected):
    assert resolve(word) == expected
    assert make({"allocation": word}).allocation == word


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("threshold", "try 'threshold:0.5'"),
        ("threshold:x", "'x'.*no float"),
        ("lamp:3", "0 at most"),
        ("lmap", "nearest: lamp"),
        ("tolerance:0.1", r"try Tolerance\(analyse"),
        ("global:men", "nearest: mean"),
    ],
)
def test_words_that_cannot_be_used(word, message):
    with pytest.raises(InputError, match=message):
        resolve(word)


def test_a_recipe_asks_for_a_budget_only_where_one_is_taken():
    assert make({"allocation": "lamp"}).budget == {"sparsity": 0.9}
    assert make({"allocation": "threshold:0.5"}).budget == {}
    assert make({"allocation": "tolerance:0.02"}).budget == {}
    assert [w for w in WORDS if not takes_budget(w)] == ["threshold", "smallest", "outliers", "tolerance"]
    assert [w for w in WORDS if needs_table(w)] == ["sensitivity", "tolerance"]


@pytest.mark.parametrize("structure", ["weight", "channel"])
@pytest.mark.parametrize("word", [w for w in WORDS if takes_budget(w) and not needs_table(w)])
def test_every_word_meets_a_budget_of_a_model(word, structure):
    plan = topiarist.plan(NET, X, structure=structure, allocation=word, budget=Budget(params=0.6))
    assert 0.5 < plan.achieved["params"] <= 0.6


def test_amounts_by_word_are_those_of_the_objects():
    assert topiarist.plan(NET, X, allocation="threshold:0.5") == topiarist.plan(NET, X, allocation=Threshold(0.5))
    assert topiarist.plan(NET, X, allocation="smallest:17").num_removed == 17


# ------------------------------------------------------------------ tolerance

TABLE = SensitivityTable(
    1.0, 0.9, tuple(Cell(n, r, 1.0, a) for n, curve in {
        "flat": {0.2: 0.9, 0.5: 0.9, 0.9: 0.895},
        "steep": {0.2: 0.7, 0.5: 0.3, 0.9: 0.1},
        "lucky": {0.2: 0.895, 0.5: 0.8, 0.9: 0.9},
    }.items() for r, a in curve.items()),
)  # fmt: skip


def test_each_layer_loses_what_its_accuracy_tolerates():
    candidates = Candidates(
        tuple(Units(n, 100, (), n) for n in TABLE.layers), {n: torch.arange(100.0) for n in TABLE.layers}
    )
    removed = Tolerance(TABLE, 0.01)(candidates, 1.0)
    assert {n: int(m.sum()) for n, m in removed.items()} == {"flat": 90, "steep": 0, "lucky": 20}
    sabotaged = {n: max(c.ratio for c in TABLE.cells if c.layer == n and c.accuracy >= 0.89) for n in ("flat", "lucky")}
    assert sabotaged["lucky"] != Tolerance(TABLE, 0.01).ratio("lucky")
    assert {n: Tolerance(TABLE, 1.0).ratio(n) for n in TABLE.layers} == dict.fromkeys(TABLE.layers, 0.9)
    with pytest.raises(InputError, match="nearest: flat"):
        Tolerance(TABLE).ratio("flit")
    with pytest.raises(InputError, match="0 or more"):
        Tolerance(TABLE, -0.1)


def test_tolerance_of_a_model_with_a_layer_that_does_nothing():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    with torch.no_grad():
        net[1].weight.copy_(torch.eye(4) + 1e-6 * torch.randn(4, 4))
        net[1].bias.zero_()
    x = torch.randn(200, 4)
    data = [(x, net(x).argmax(1))]
    plan = topiarist.plan(net, x[:1], allocation="tolerance:0.02", data=data, loss=nn.CrossEntropyLoss())
    gone = {name: float(mask.double().mean()) for name, mask in plan.removed.items()}
    assert gone["1.weight"] == pytest.approx(0.75, abs=0.07)
    assert max(gone["0.weight"], gone["2.weight"]) < 0.5


# ------------------------------------------------------------------ minimum


def left(plan):
    return {name: int((~gone).sum()) for name, gone in plan.removed.items()}


@pytest.mark.parametrize(
    ("least", "expected"),
    [
        (3, {"0.weight:0": 3, "2.weight:0": 3}),
        (0.25, {"0.weight:0": 3, "2.weight:0": 5}),
        ({"0": 4, "Linear": 0.5}, {"0.weight:0": 4, "2.weight:0": 10}),
        ({"2.*": 50}, {"0.weight:0": 1, "2.weight:0": 20}),
        (None, {"0.weight:0": 1, "2.weight:0": 1}),
    ],
)
def test_so_many_stay_at_least(least, expected):
    stays = sum(expected.values())
    for allocation in ("global", "uniform", "lamp", "owl"):
        budget = Budget(sparsity=1 - stays / 30)
        plan = topiarist.plan(NET, X, structure="channel", allocation=allocation, min_units=least, budget=budget)
        assert left(plan) == expected
    budget = Budget(sparsity=1 - (stays - 2) / 30)
    with pytest.raises(BudgetError, match="keeps"):
        topiarist.plan(NET, X, structure="channel", min_units=least, budget=budget)


def test_prune_and_recipes_take_it_too():
    result = topiarist.prune(NET, X, structure="channel", min_units=8, budget=Budget(params=0.5))
    assert min(left(result.plan).values()) >= 8
    assert make({"min_units": "8"}).min_units == 8
    assert make({"min_units": 0.5}).min_units == 0.5
    assert make({"min_units": {"features.*": 8, "Linear": 0.1}}).min_units == {"features.*": 8, "Linear": 0.1}
    assert make({"min_units": "features.*=8,Linear=0.1"}).min_units == {"features.*": 8, "Linear": 0.1}


def test_a_minimum_that_cannot_be_used_is_refused():
    units = [Units("fc", 4, (), "fc", "Linear", minimum=2)]
    assert with_minimum(units, 1)[0].minimum == 2
    for wrong in (-1, 1.5, True, float("nan"), "3"):
        with pytest.raises(InputError, match="min_units"):
            with_minimum(units, wrong)
    with pytest.raises(InputError, match="nearest: fc"):
        with_minimum(units, {"f": 1})
