"""The knapsack: exact against brute force, within its cost, in the order of the scores; and over what a model costs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import topiarist
from topiarist.allocation import Candidates, Knapsack
from topiarist.allocation.knapsack import solve
from topiarist.errors import BudgetError, InputError
from topiarist.measure import macs, num_params
from topiarist.plan import Budget, Units


def best_by_trying_all(values, costs, capacity):
    return max(
        sum(v[i] for v, i in zip(values, chosen, strict=True))
        for chosen in itertools.product(*(range(len(v)) for v in values))
        if sum(c[i] for c, i in zip(costs, chosen, strict=True)) <= capacity
    )


problems = st.lists(
    st.tuples(st.lists(st.integers(0, 9), min_size=4, max_size=4), st.lists(st.integers(0, 6), min_size=4, max_size=4)),
    min_size=4,
    max_size=4,
)


@settings(max_examples=50, deadline=None)
@given(problems, st.integers(0, 60))
def test_the_best_of_four_layers_of_four_groups(problem, capacity):
    values = [np.concatenate([[0.0], np.cumsum(np.sort(v)[::-1])]) for v, _ in problem]
    costs = [np.concatenate([[0], np.cumsum(c)]).astype(np.int64) for _, c in problem]
    chosen = solve(values, costs, capacity)
    assert sum(int(c[i]) for c, i in zip(costs, chosen, strict=True)) <= capacity
    worth = sum(float(v[i]) for v, i in zip(values, chosen, strict=True))
    assert worth == pytest.approx(best_by_trying_all(values, costs, capacity))
    if capacity >= sum(int(c[-1]) for c in costs):
        assert chosen == [4] * 4


def test_taking_the_best_per_cost_first_is_caught():
    values, costs = [np.array([0.0, 6.0]), np.array([0.0, 10.0])], [np.array([0, 1]), np.array([0, 5])]
    assert solve(values, costs, 5) == [0, 1]
    greedy = 6.0  # 6 per cost against 2, and then nothing else fits
    assert best_by_trying_all(values, costs, 5) == 10.0 > greedy


def of_scores(gone=None, **scores):
    scores = {name: torch.tensor(s, dtype=torch.float64) for name, s in scores.items()}
    return Candidates(tuple(Units(n, len(s), (), n, minimum=1) for n, s in scores.items()), scores, gone=gone or {})


def counts(removed):
    return {name: int(mask.sum()) for name, mask in removed.items()}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.floats(0, 9), min_size=2, max_size=5), min_size=2, max_size=4), st.floats(0, 1))
def test_the_removal_is_the_best_that_the_cost_allows(scores, level):
    candidates = of_scores(**{f"u{i}": s for i, s in enumerate(scores)})
    price = {name: 1 + i for i, name in enumerate(candidates.scores)}
    nums = {u.name: u.num for u in candidates.units}

    def cost(kept):
        return sum(price[n] * kept.get(n, num) for n, num in nums.items())

    removed = Knapsack(cost, normalize="none")(candidates, level)
    left = {name: int((~mask).sum()) for name, mask in removed.items()}
    least = cost(dict.fromkeys(nums, 1))
    room = (1 - level) * (cost(nums) - least) + 1e-9
    assert cost(left) - least <= room
    values = [np.cumsum(np.sort(s.numpy())[::-1]) for s in candidates.scores.values()]
    costs = [price[n] * np.arange(num) for n, num in nums.items()]
    worth = sum(v[left[n] - 1] for n, v in zip(nums, values, strict=True))
    assert worth == pytest.approx(best_by_trying_all(values, costs, room))
    for name, mask in removed.items():
        stays, goes = candidates.scores[name][~mask], candidates.scores[name][mask]
        assert not len(goes) or float(goes.max()) <= float(stays.min())


def test_what_is_free_stays_and_nothing_goes_for_nothing():
    candidates = of_scores(free=[1.0, 1.0, 1.0], dear=[0.0, 0.0, 0.0])
    only_dear = Knapsack(lambda kept: kept.get("dear", 3))
    assert counts(only_dear(candidates, 1.0)) == {"free": 0, "dear": 2}
    assert counts(only_dear(candidates, 0.0)) == {"free": 0, "dear": 0}


def test_plateaus_are_kept_and_costs_that_fall_are_raised():
    table = [0.0, 5.0, 5.0, 9.0, 8.0]  # a second unit is free, a fourth costs less than a third
    candidates = of_scores(a=[1.0, 2.0, 3.0, 4.0])
    for level, kept in ((0.0, 4), (0.3, 2), (1.0, 2)):
        assert counts(Knapsack(lambda k: table[k.get("a", 4)])(candidates, level)) == {"a": 4 - kept}


def test_units_gone_stay_gone_and_groups_go_whole():
    gone = {"a": torch.tensor([True, False, False, False, False])}
    candidates = of_scores(gone, a=[9.0, 1.0, 2.0, 3.0, 4.0], b=[5.0, 6.0])
    removed = Knapsack("units", normalize="none")(candidates, 0.5)
    assert removed["a"].tolist() == [True, True, True, False, False]
    wide = of_scores(a=[float(i) for i in range(9)])
    assert {counts(Knapsack("units", group=4)(wide, level))["a"] for level in np.linspace(0, 1, 30)} == {0, 4, 8}


@pytest.mark.parametrize("unit", ["macs", "params", "bytes"])
def test_a_budget_is_met_by_a_model(unit):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 3))
    x = torch.zeros(2, 6)
    plan = topiarist.plan(net, x, structure="channel", allocation=f"knapsack:{unit}", budget=Budget(**{unit: 0.4}))
    small = topiarist.shrink(net, plan, x)
    assert 0.3 < plan.achieved[unit] <= 0.4
    assert plan.achieved["params"] == num_params(small) / num_params(net)
    assert plan.achieved["macs"] == macs(small, x).total / macs(net, x).total


def test_its_choice_is_worth_more_than_a_uniform_one_of_the_same_cost():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 40), nn.Linear(40, 2))
    x = torch.zeros(1, 8)
    worth = {}
    for allocation in ("uniform", Knapsack("macs", normalize="none")):
        planner = topiarist.planning.Planner.of(net, x, topiarist.structure.Channel(), (), None)
        candidates = planner.candidates(topiarist.saliency.Magnitude(1), None, None, {})
        plan = planner.plan(topiarist.saliency.Magnitude(1), topiarist.allocation.resolve(allocation), Budget(macs=0.5))
        kept = sum(float(candidates.scores[n][~gone].sum()) for n, gone in plan.removed.items())
        worth[str(allocation)[:7]] = kept
    assert worth["Knapsac"] > worth["uniform"]


def test_what_cannot_be_used_is_refused():
    with pytest.raises(InputError, match="no cost is called 'mac'"):
        Knapsack("mac")(of_scores(a=[1.0, 2.0]), 0.5)
    for wrong in ({"group": 0}, {"normalize": "men"}, {"steps": 0}):
        with pytest.raises(InputError):
            Knapsack(**wrong)
    with pytest.raises(BudgetError, match="nearest is macs"):
        topiarist.plan(nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 4)), torch.zeros(1, 4), structure="channel",
                       allocation="knapsack", budget=Budget(macs=0.01))  # fmt: skip
