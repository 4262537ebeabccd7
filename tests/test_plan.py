"""The values that every room speaks: budgets in their ranges, plans through JSON, and JSON that is damaged."""

from __future__ import annotations

import base64
import json
import math
import tracemalloc
import zlib
from contextlib import suppress
from types import MappingProxyType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from topiarist.errors import FormatError, InputError
from topiarist.plan import Budget, Plan, Slice, Units
from topiarist.testing.invariants import half_of_every_axis
from topiarist.testing.zoo import build

# ------------------------------------------------------------------------------------------------------------ budgets

UNITS = ["sparsity", "compression", "macs", "params", "bytes"]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, -math.inf])
def test_budgets_outside_their_range_are_refused(unit, value):
    with pytest.raises(InputError, match=rf"{unit} must lie in \[.*got {value!r}"):
        Budget(**{unit: value})


@pytest.mark.parametrize(("unit", "value"), [("sparsity", 1.01), ("macs", 2), ("params", 1.5), ("compression", 0.5)])
def test_budgets_just_outside_are_refused(unit, value):
    with pytest.raises(InputError, match=unit):
        Budget(**{unit: value})


@pytest.mark.parametrize(
    ("unit", "value"), [("sparsity", 0), ("sparsity", 1), ("macs", 1), ("compression", 1), ("bytes", 0)]
)
def test_the_ends_of_a_range_belong_to_it(unit, value):
    budget = Budget(**{unit: value})
    assert (budget.unit, budget.value) == (unit, value)


@pytest.mark.parametrize("given", [{}, {"sparsity": 0.5, "macs": 0.5}])
def test_a_budget_has_exactly_one_unit(given):
    with pytest.raises(InputError, match="exactly one unit"):
        Budget(**given)


@pytest.mark.parametrize(
    ("budget", "removed", "text"),
    [
        (Budget(sparsity=0.75), 0.75, "Budget(sparsity=0.75)  # removes 0.75 of the prunable units"),
        (Budget(compression=4), 0.75, "Budget(compression=4)  # original size / remaining size"),
        (Budget(macs=0.25), 0.75, "Budget(macs=0.25)  # keeps 0.25 of the macs"),
        (Budget(params=0.25), 0.75, "Budget(params=0.25)  # keeps 0.25 of the params"),
        (Budget(bytes=0.25), 0.75, "Budget(bytes=0.25)  # keeps 0.25 of the bytes"),
    ],
)
def test_a_budget_says_what_its_number_means(budget, removed, text):
    assert budget.removed == removed
    assert repr(budget) == text


@given(st.sampled_from(UNITS), st.floats(0, 0.99))
def test_a_budget_on_the_way_has_the_same_unit(unit, removed):
    way = Budget(**{unit: 1}).with_removed(removed)
    assert way.unit == unit
    assert way.removed == pytest.approx(removed, abs=1e-12)


def test_budgets_are_values():
    assert Budget(macs=0.5) == Budget(macs=0.5) != Budget(params=0.5)
    assert len({Budget(macs=0.5), Budget(macs=0.5)}) == 1
    with pytest.raises(AttributeError):
        Budget(macs=0.5).macs = 0.1


# -------------------------------------------------------------------------------------------------------------- plans


@st.composite
def plans(draw):
    bits = st.lists(st.booleans(), max_size=20).map(lambda b: torch.tensor(b, dtype=torch.bool))
    long = st.integers(4090, 5000).map(lambda n: torch.arange(n) % 3 == 0)
    names = st.text("abc.:0µ", min_size=1, max_size=6)
    slices = st.lists(st.builds(Slice, st.integers(0, 3), bits), min_size=1, max_size=2).map(tuple)
    numbers = st.dictionaries(st.sampled_from(UNITS), st.floats(allow_nan=False), max_size=2)
    return Plan(
        draw(st.sampled_from(["weight", "channel", "head"])),
        draw(st.dictionaries(names, st.one_of(bits, long), max_size=3)),
        draw(st.dictionaries(names, slices, max_size=2)),
        draw(st.dictionaries(names, st.integers(0, 2**40), max_size=2)),
        draw(st.dictionaries(names, st.text(max_size=5), max_size=2)),
        draw(numbers),
        draw(numbers),
    )


@settings(max_examples=60, deadline=None)
@given(plans())
def test_a_plan_comes_back_from_json_as_it_was(plan):
    back = Plan.from_json(plan.to_json())
    assert back == plan
    assert back.to_json() == plan.to_json()
    assert hash(back) == hash(plan)
    for name, removed in plan.removed.items():
        assert torch.equal(back.removed[name], removed)
    assert (back.attributes, back.inexact) == (plan.attributes, plan.inexact)
    assert (back.requested, back.achieved) == (plan.requested, plan.achieved)


def test_a_real_plan_comes_back():
    plan = half_of_every_axis(*build("vit")).plan
    assert Plan.from_json(plan.to_json()) == plan


GONE = torch.tensor([True, False, True])
BASE = Plan(
    "channel", {"a": GONE}, {"a.weight": (Slice(0, GONE),)}, {"a.n": 2}, {"a": "norm"}, {"macs": 0.5}, {"macs": 0.4}
)


@pytest.mark.parametrize(
    "other",
    [
        Plan("head", BASE.removed, BASE.slices, BASE.attributes),
        Plan("channel", {"a": ~GONE}, BASE.slices, BASE.attributes),
        Plan("channel", {"b": GONE}, BASE.slices, BASE.attributes),
        Plan("channel", BASE.removed, {"a.weight": (Slice(1, GONE),)}, BASE.attributes),
        Plan("channel", BASE.removed, {"a.weight": (Slice(0, ~GONE),)}, BASE.attributes),
        Plan("channel", BASE.removed, BASE.slices, {"a.n": 3}),
    ],
)
def test_another_decision_is_another_digest(other):
    assert other != BASE
    assert other.digest != BASE.digest


def test_what_was_asked_and_reached_is_no_part_of_the_decision():
    same = Plan("channel", BASE.removed, BASE.slices, BASE.attributes, {}, {"sparsity": 0.1}, {"macs": 0.9})
    assert same == BASE
    assert same != "a plan"


def test_the_digest_does_not_depend_on_the_order_of_names():
    one, two = torch.tensor([True, False]), torch.tensor([False, True])
    assert Plan("weight", {"a": one, "b": two}) == Plan("weight", {"b": two, "a": one})


def test_a_digest_for_ever():
    """Stored plans are compared by digest across releases: this one may never change."""
    assert BASE.digest == "b99775858d368fb742e47ca4c2162af14ef7ec7abf9e88a7bd12dc5d15063648"


def test_a_plan_cannot_be_changed():
    with pytest.raises(AttributeError):
        BASE.structure = "head"
    assert isinstance(BASE.removed, MappingProxyType)
    source = {"a": GONE}
    plan = Plan("weight", source)
    source["b"] = GONE
    assert list(plan.removed) == ["a"]


def test_counts_and_repr():
    assert (BASE.num_removed, BASE.num_units) == (2, 3)
    assert repr(BASE) == f"Plan(channel, 2 of 3 units, digest {BASE.digest[:12]})"


def test_long_selections_are_stored_as_bits():
    gone = torch.rand(100_000, generator=torch.Generator().manual_seed(0)) < 0.5
    plan = Plan("weight", {"w": gone})
    assert len(plan.to_json()) < 20_000
    assert torch.equal(Plan.from_json(plan.to_json()).removed["w"], gone)


# -------------------------------------------------------------------------------------------------------------- masks


def test_masks_are_a_numpy_loop():
    model, _ = build("mlp")
    plan = half_of_every_axis(*build("mlp")).plan
    masks = plan.masks(model)
    for name, parameter in model.named_parameters():
        expected = np.zeros(tuple(parameter.shape), dtype=bool)
        for piece in plan.slices.get(name, ()):
            for index in np.ndindex(*expected.shape):
                expected[index] |= bool(piece.removed[index[piece.dim]])
        assert np.array_equal(masks[name].numpy() if name in masks else np.zeros_like(expected), expected)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan("weight", {"wieght": torch.ones(6, dtype=torch.bool)}), "'wieght'.*nearest: weight"),
        (Plan("weight", {"weight": torch.ones(7, dtype=torch.bool)}), "has 6 entries, the plan was made for 7"),
        (Plan("channel", {}, {"weight": (Slice(0, GONE[:1]),)}), r"shape \(2, 3\).*size 1 in dimension 0"),
        (Plan("channel", {}, {"weight": (Slice(2, GONE),)}), "in dimension 2"),
        (Plan("channel", {}, {"nothing": (Slice(0, GONE),)}), "'nothing'"),
    ],
)
def test_masks_of_another_model_are_refused(plan, message):
    with pytest.raises(InputError, match=message):
        plan.masks(nn.Linear(3, 2))


# ------------------------------------------------------------------------------------------------------- damaged JSON


def with_change(change):
    raw = json.loads(BASE.to_json())
    change(raw)
    return json.dumps(raw)


def bits(content, size):
    return {"size": size, "bits": base64.b64encode(content).decode()}


DAMAGED = {
    "nothing": "",
    "no JSON": "{",
    "a list": "[]",
    "a number": "3",
    "null": "null",
    "deep": "[" * 100_000,
    "another format": with_change(lambda raw: raw.update(format="topiarist-checkpoint")),
    "a newer version": with_change(lambda raw: raw.update(version=4)),
    **{f"without {key}": with_change(lambda raw, key=key: raw.pop(key)) for key in json.loads(BASE.to_json())},
    "removed is a list": with_change(lambda raw: raw.update(removed=[])),
    "removed holds numbers": with_change(lambda raw: raw.update(removed={"a": 3})),
    "no size": with_change(lambda raw: raw.update(removed={"a": {"indices": []}})),
    "neither indices nor bits": with_change(lambda raw: raw.update(removed={"a": {"size": 3}})),
    "size below zero": with_change(lambda raw: raw["removed"]["a"].update(size=-1)),
    "size is text": with_change(lambda raw: raw["removed"]["a"].update(size="3")),
    "size is true": with_change(lambda raw: raw["removed"]["a"].update(size=True)),
    "size is infinite": with_change(lambda raw: raw["removed"]["a"].update(size=math.inf)),
    "size is enormous": with_change(lambda raw: raw["removed"]["a"].update(size=10**15)),
    "size is beyond integers": with_change(lambda raw: raw["removed"]["a"].update(size=10**40)),
    "index beyond": with_change(lambda raw: raw["removed"]["a"].update(indices=[3])),
    "index below zero": with_change(lambda raw: raw["removed"]["a"].update(indices=[-1])),
    "index is a fraction": with_change(lambda raw: raw["removed"]["a"].update(indices=[0.5])),
    "index is a list": with_change(lambda raw: raw["removed"]["a"].update(indices=[[0]])),
    "indices are a number": with_change(lambda raw: raw["removed"]["a"].update(indices=3)),
    "bits are no base64": with_change(lambda raw: raw["removed"].update(a={"size": 8, "bits": "%%%"})),
    "bits are no stream": with_change(lambda raw: raw["removed"].update(a=bits(b"abc", 8))),
    "bits are a number": with_change(lambda raw: raw["removed"].update(a={"size": 8, "bits": 3})),
    "too few bits": with_change(lambda raw: raw["removed"].update(a=bits(zlib.compress(b"a"), 17))),
    "too many bits": with_change(lambda raw: raw["removed"].update(a=bits(zlib.compress(b"abc"), 8))),
    "a stream cut short": with_change(lambda raw: raw["removed"].update(a=bits(zlib.compress(b"abc")[:-4], 24))),
    "a stream and more": with_change(lambda raw: raw["removed"].update(a=bits(zlib.compress(b"abc") + b"more", 24))),
    "enormous bits": with_change(lambda raw: raw["removed"].update(a=bits(zlib.compress(b"abc"), 10**15))),
    "dim is text": with_change(lambda raw: raw["slices"]["a.weight"][0].update(dim="first")),
    "slices are a number": with_change(lambda raw: raw["slices"].update({"a.weight": 3})),
    "attribute is text": with_change(lambda raw: raw["attributes"].update({"a.n": "many"})),
    "attribute is infinite": with_change(lambda raw: raw["attributes"].update({"a.n": math.inf})),
    "attribute is a list": with_change(lambda raw: raw["attributes"].update({"a.n": []})),
    "inexact is a number": with_change(lambda raw: raw.update(inexact=3)),
    "achieved is a list": with_change(lambda raw: raw.update(achieved=[1, 2])),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_damaged_plans_are_format_errors(what):
    with pytest.raises(FormatError, match="plan"):
        Plan.from_json(DAMAGED[what])


def test_a_bomb_is_not_unpacked():
    bomb = zlib.compress(bytes(2**28), 9)
    text = with_change(lambda raw: raw["removed"].update(a=bits(bomb, 80_000)))
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="for 80000 units"):
            Plan.from_json(text)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=5,
)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_change_gives_a_plan_or_a_format_error(data):
    raw = json.loads(BASE.to_json())
    place = raw
    while isinstance(place, (dict, list)) and place:
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else list(range(len(place)))))
        if not isinstance(place[key], (dict, list)) or data.draw(st.booleans()):
            break
        place = place[key]
    if isinstance(place, (dict, list)) and place:
        place[key] = data.draw(JSON)
    text = json.dumps(raw)
    text = text[: data.draw(st.sampled_from([len(text), len(text) // 2, len(text) - 1]))]
    with suppress(FormatError):
        assert isinstance(Plan.from_json(text), Plan)


def test_units_and_slices_are_told_apart_by_identity():
    """They hold tensors, which have no truth value: comparing them must not compare tensors."""
    assert Units("a", 3, ()) != Units("a", 3, ())
    assert Slice(0, GONE) != Slice(0, GONE)
