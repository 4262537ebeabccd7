"""Allocations: exact amounts, minimums, what is gone, monotony; and the search that fits a budget within one unit."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topiarist.allocation import (
    Candidates,
    Cell,
    ErdosRenyi,
    Global,
    Isomorphic,
    Lamp,
    Owl,
    PerLayer,
    Sensitivity,
    SensitivityTable,
    Smallest,
    Threshold,
    Uniform,
    fit,
    resolve,
)
from topiarist.allocation.normalize import NORMALIZATIONS
from topiarist.errors import BudgetError, InputError
from topiarist.plan import Budget, Member, Units
from topiarist.testing.selection import lowest


def weights(name, num, minimum=0, kind="Linear"):
    return Units(name, num, (Member(name),), name.removesuffix(".weight"), kind, minimum)


def channels(name, num, minimum=1, kind="Conv2d"):
    return Units(name, num, (Member(f"{name}.weight", 0, torch.arange(num)),), name, kind, minimum)


def scored(*units, seed=0, gone=None):
    generator = torch.Generator().manual_seed(seed)
    scores = {u.name: torch.randn(u.num, generator=generator).abs() for u in units}
    return Candidates(units, scores, scores.__getitem__, gone or {})


def counts(removed):
    return {name: int(mask.sum()) for name, mask in removed.items()}


def sparsity(removed):
    return {"sparsity": sum(counts(removed).values()) / sum(mask.numel() for mask in removed.values())}


def equal_loss(candidates):
    """A sensitivity allocation with a curve per units, one of them flat, one falling."""
    shapes = [lambda r: r, lambda r: r**2, lambda r: 0.0, lambda r: -r, lambda r: max(0.0, r - 0.5)]
    cells = tuple(
        Cell(u.name, ratio, 1.0 + shapes[i % len(shapes)](ratio), 0.5)
        for i, u in enumerate(candidates.units)
        for ratio in (0.25, 0.5, 0.75, 1.0)
    )
    return Sensitivity(SensitivityTable(1.0, 0.9, cells))


def with_budget(candidates):
    return [
        Uniform(), *(Global(how) for how in ("auto", *NORMALIZATIONS)), equal_loss(candidates), ErdosRenyi(), Lamp(),
        Owl(2.0, 0.2), Owl(by="layer"), Isomorphic(), Isomorphic("gaussian"),
    ]  # fmt: skip


def with_amounts(candidates):
    return [
        PerLayer({"*": 0.5}), PerLayer({candidates.units[0].name: 0.3}), Threshold(0.7), Smallest(3, "layer"),
        Smallest(min(5, candidates.most_of_all)),
    ]  # fmt: skip


@st.composite
def any_candidates(draw, make=None):
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=5))
    make = make or draw(st.sampled_from([weights, channels]))
    units = tuple(make(f"u{i}", n, draw(st.integers(0, min(n, 3)))) for i, n in enumerate(sizes))
    values = st.sampled_from([0.0, 0.1, 0.5, 0.5, 1.0, 2.0])
    scores = {u.name: torch.tensor(draw(st.lists(values, min_size=u.num, max_size=u.num))) for u in units}
    gone = {u.name: lowest({"s": scores[u.name]}, draw(st.integers(0, u.num - u.minimum)))["s"] for u in units[::2]}
    return Candidates(units, scores, scores.__getitem__, gone)


levels = st.floats(0, 1)


@settings(max_examples=60, deadline=None)
@given(any_candidates(), levels, levels)
def test_what_goes_at_one_level_goes_at_every_higher_one(candidates, one, other):
    low, high = sorted((one, other))
    allocations = with_budget(candidates) + (with_amounts(candidates) if candidates.units[0].minimum < 12 else [])
    for allocation in allocations:
        try:
            few, many = allocation(candidates, low), allocation(candidates, high)
        except BudgetError:
            continue
        for units in candidates.units:
            assert not bool((few[units.name] & ~many[units.name]).any()), allocation
            if units.name in candidates.gone:
                assert not bool((candidates.gone[units.name] & ~few[units.name]).any()), allocation
            assert int(many[units.name].sum()) <= units.num - units.minimum, allocation


@settings(max_examples=60, deadline=None)
@given(any_candidates())
def test_the_ends_of_the_range(candidates):
    for allocation in with_budget(candidates):
        assert counts(allocation(candidates, 0.0)) == {u.name: candidates.num_gone(u.name) for u in candidates.units}
        assert counts(allocation(candidates, 1.0)) == {u.name: u.num - u.minimum for u in candidates.units}


@settings(max_examples=60, deadline=None)
@given(any_candidates(), levels)
def test_the_minimum_keeps_the_best(candidates, level):
    for allocation in with_budget(candidates):
        for name, mask in allocation(candidates, level).items():
            scores, gone = candidates.scores[name], candidates.gone.get(name, torch.zeros_like(mask))
            stays, goes = scores[~mask], scores[mask & ~gone]
            assert not len(stays) or not len(goes) or float(goes.max()) <= float(stays.min()), allocation


@settings(max_examples=60, deadline=None)
@given(any_candidates(make=weights), levels)
def test_exact_numbers(candidates, level):
    expected = math.floor(level * candidates.num_units + 0.5)
    gone = sum(candidates.num_gone(u.name) for u in candidates.units)
    assert sum(counts(Global()(candidates, level)).values()) == min(max(expected, gone), candidates.most_of_all)
    for u in candidates.units:
        expected = math.floor(level * u.num + 0.5)
        clipped = min(max(expected, candidates.num_gone(u.name)), u.num - u.minimum)
        assert counts(Uniform()(candidates, level))[u.name] == clipped


def test_global_is_one_ranking_and_uniform_one_per_layer():
    candidates = scored(weights("a", 30), weights("b", 50), seed=1)
    candidates.scores["b"].mul_(0.1)
    found, expected = Global()(candidates, 0.5), lowest(candidates.scores, 40)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert counts(Uniform()(candidates, 0.9)) == {"a": 27, "b": 45}
    assert counts(Global()(candidates, 0.5))["b"] > 35


def test_layerwise_lenet_has_every_layer_at_a_tenth():
    candidates = scored(weights("fc1", 235200), weights("fc2", 30000), weights("fc3", 1000))
    removed, achieved = fit(Uniform(), candidates, Budget(sparsity=0.9), sparsity)
    assert counts(removed) == {"fc1": 211680, "fc2": 27000, "fc3": 900}
    assert achieved == {"sparsity": 239580 / 266200}


def test_normalization_makes_axes_of_different_extent_comparable():
    wide, narrow = channels("wide", 20), channels("narrow", 20)
    candidates = scored(wide, narrow)
    other = Candidates(
        candidates.units, {"wide": candidates.scores["wide"] * 100, "narrow": candidates.scores["narrow"]}
    )
    for normalize in ("auto", "mean"):
        assert counts(Global(normalize)(other, 0.5)) == counts(Global(normalize)(candidates, 0.5))
    assert counts(Global("none")(other, 0.45)) == {"wide": 0, "narrow": 18}
    single = scored(weights("wide", 20), weights("narrow", 20))
    scaled = Candidates(single.units, {**single.scores, "wide": single.scores["wide"] * 100})
    assert counts(Global()(scaled, 0.5)) == counts(Global("none")(scaled, 0.5)) == {"wide": 0, "narrow": 20}


def test_normalization_leaves_gone_units_out_and_zeros_alone():
    units = (channels("a", 4, 0), channels("b", 4, 0))
    scores = {"a": torch.tensor([0.0, 0.0, 1.0, 3.0]), "b": torch.tensor([1.0, 2.0, 2.0, 3.0])}
    gone = {"a": torch.tensor([True, True, False, False])}
    removed = Global("mean")(Candidates(units, scores, gone=gone), 0.5)  # 1/2, 3/2 against 1/2, 1, 1, 3/2
    assert counts(removed) == {"a": 3, "b": 1}
    zeros = Candidates(units, {"a": torch.zeros(4), "b": torch.ones(4)})
    assert counts(Global("mean")(zeros, 0.5)) == {"a": 4, "b": 0}
    negative = Candidates(units, {"a": torch.tensor([-4.0, -3.0, -2.0, -1.0]), "b": torch.ones(4)})
    assert Global("mean")(negative, 0.25)["a"].tolist() == [True, True, False, False]
    with pytest.raises(InputError, match="mean"):
        Global("maen")


def test_amounts_per_layer_by_pattern_and_type():
    candidates = scored(weights("a.fc1.weight", 10), weights("a.fc2.weight", 10), weights("b.fc1.weight", 10),
                        weights("conv.weight", 10, kind="Conv2d"))  # fmt: skip
    removed = PerLayer({"b.*": 0.25, "a.fc2.weight": 1.0, "Linear": 0.5})(candidates, 1.0)
    assert counts(removed) == {"a.fc1.weight": 5, "a.fc2.weight": 10, "b.fc1.weight": 3, "conv.weight": 0}
    for name, mask in removed.items():
        assert torch.equal(mask, lowest({"s": candidates.scores[name]}, int(mask.sum()))["s"])
    assert counts(PerLayer({"Linear": 0.5})(candidates, 0.5)) == {
        "a.fc1.weight": 3, "a.fc2.weight": 3, "b.fc1.weight": 3, "conv.weight": 0,
    }  # fmt: skip


def test_a_pattern_that_fits_nothing_is_refused_with_the_nearest():
    candidates = scored(weights("features.0.weight", 10))
    with pytest.raises(InputError, match=r"'feature\.0'.*nearest: features\.0"):
        PerLayer({"Linear": 0.5, "feature.0": 0.5})(candidates, 1.0)
    for ratio in (-0.1, 1.1, math.nan):
        with pytest.raises(InputError, match=r"\[0, 1\]"):
            PerLayer({"*": ratio})
    with pytest.raises(BudgetError, match="at most 7"):
        PerLayer({"*": 1.0})(scored(weights("w", 10, minimum=3)), 1.0)
    assert counts(PerLayer({"*": 1.0})(scored(weights("w", 10, minimum=1)), 1.0)) == {"w": 9}


@pytest.mark.parametrize("q", [0.5, 1.0, 2.0])
def test_a_threshold_of_q_sigma_removes_erf_of_a_normal_layer(q):
    weight = torch.randn(200_000, generator=torch.Generator().manual_seed(0)) * 3
    candidates = Candidates((weights("w", 200_000),), {"w": weight.abs()}, lambda name: weight)
    removed = Threshold(q)(candidates, 1.0)["w"]
    assert float(removed.double().mean()) == pytest.approx(math.erf(q / math.sqrt(2)), abs=3e-3)
    assert removed.numpy().tolist() == (np.abs(weight.numpy()) < np.float32(q * weight.double().numpy().std())).tolist()


def test_thresholds_per_layer_with_a_mean_and_with_what_is_gone():
    weight = {"a": torch.tensor([4.0, 5.0, 6.0, 1.0, -9.0]), "b": torch.tensor([1.0, -1.0, 0.1, -0.1, 0.0])}
    units = (weights("a", 5), weights("b", 5))
    scores = {name: w.abs() for name, w in weight.items()}
    removed = Threshold({"b": 0.5})(Candidates(units, scores, weight.__getitem__), 1.0)
    assert {n: m.tolist() for n, m in removed.items()} == {"a": [False] * 5, "b": [False, False, True, True, True]}
    gone = {"a": torch.tensor([False, False, False, False, True])}
    spread = np.std([4, 5, 6, 1])  # signed, around the mean, of what is left
    removed = Threshold(4.01 / spread)(Candidates(units[:1], {"a": scores["a"]}, weight.__getitem__, gone), 1.0)
    assert removed["a"].tolist() == [True, False, False, True, True]
    least = Candidates((weights("b", 5, minimum=3),), {"b": scores["b"]}, weight.__getitem__)
    assert Threshold(0.5)(least, 1.0)["b"].tolist() == [False, False, True, False, True]


def test_thresholds_that_cannot_be_used_are_refused():
    for q in (-1.0, math.nan, math.inf):
        with pytest.raises(InputError, match="q must be"):
            Threshold(q)
    units = channels("c", 3)
    with pytest.raises(InputError, match='structure="weight"'):
        Threshold(1.0)(Candidates((units,), {"c": torch.ones(3)}, lambda name: torch.ones(6)), 1.0)
    with pytest.raises(InputError, match="no weights"):
        Threshold(1.0)(Candidates((units,), {"c": torch.ones(3)}), 1.0)


def test_the_n_smallest():
    candidates = scored(weights("a", 10), weights("b", 2), seed=2)
    found, expected = Smallest(5)(candidates, 1.0), lowest(candidates.scores, 5)
    assert all(torch.equal(found[n], expected[n]) for n in expected)
    assert counts(Smallest(3, "layer")(candidates, 1.0)) == {"a": 3, "b": 2}
    assert counts(Smallest(12)(candidates, 1.0)) == {"a": 10, "b": 2}
    with pytest.raises(InputError, match=r"13 smallest.*at most 12"):
        Smallest(13)(candidates, 1.0)
    for wrong in (-1, 2.5):
        with pytest.raises(InputError, match="counts units"):
            Smallest(wrong)
    with pytest.raises(InputError, match="layer"):
        Smallest(3, "layers")


def macs(keep_of):
    """A price in which each set multiplies with the next, as channels do, with a part that no unit owns."""

    def price(removed):
        keep = [1.0, *((~mask).double().mean().item() for mask in removed.values()), 1.0]
        share = sum(a * b for a, b in itertools.pairwise(keep)) / (len(keep) - 1)
        return {"macs": keep_of + (1 - keep_of) * share, **sparsity(removed)}

    return price


@settings(max_examples=80, deadline=None)
@given(any_candidates(), st.floats(0, 1))
def test_sparsity_is_met_exactly_or_refused(candidates, target):
    n = candidates.num_units
    gone = sum(candidates.num_gone(u.name) for u in candidates.units)
    for allocation in with_budget(candidates):
        try:
            removed, achieved = fit(allocation, candidates, Budget(sparsity=target), sparsity)
        except BudgetError:
            assert target * n > candidates.most_of_all + 1 - 1e-6 or target * n < gone - 1 + 1e-6
            continue
        number = sum(counts(removed).values())
        assert achieved == {"sparsity": number / n}
        possible = min(max(target * n, gone), candidates.most_of_all)
        assert abs(number - possible) <= 0.5 + 1e-6, allocation


@settings(max_examples=60, deadline=None)
@given(any_candidates(make=channels), st.floats(0.05, 1), st.sampled_from([0.0, 0.2]))
def test_ceilings_are_met_and_one_unit_less_would_not_do(candidates, target, keep_of):
    price = macs(keep_of)
    start = {u.name: candidates.gone.get(u.name, torch.zeros(u.num, dtype=torch.bool)) for u in candidates.units}
    for allocation in with_budget(candidates):
        try:
            removed, achieved = fit(allocation, candidates, Budget(macs=target), price)
        except BudgetError:
            assert price(allocation(candidates, 1.0))["macs"] > target
            continue
        assert achieved == price(removed)
        assert achieved["macs"] <= target + 1e-6
        if price(start)["macs"] > target + 1e-6:  # some single unit, put back, breaks the ceiling
            back = []
            for name, mask in removed.items():
                if bool((mask & ~start[name]).any()):
                    less = mask.clone()
                    less[(mask & ~start[name]).nonzero()[-1]] = False
                    back.append(price({**removed, name: less})["macs"])
            assert max(back) > target


def test_layers_that_step_together_are_told_apart():
    candidates = scored(*(channels(f"c{i}", 8) for i in range(6)))
    for number in range(43):
        removed, _ = fit(Uniform(), candidates, Budget(sparsity=number / 48), sparsity)
        assert sum(counts(removed).values()) == number
        assert max(counts(removed).values()) - min(counts(removed).values()) <= 1


def test_the_search_asks_for_few_prices():
    candidates, asked = scored(*(channels(f"c{i}", 512) for i in range(8))), []

    def price(removed):
        asked.append(removed)
        return macs(0.0)(removed)

    for allocation in (Uniform(), Global()):
        asked.clear()
        fit(allocation, candidates, Budget(macs=0.5), price)
        assert len(asked) < 30


def test_what_limits_is_named():
    candidates = scored(channels("conv1", 8, minimum=4), channels("conv2", 8, minimum=0))
    with pytest.raises(BudgetError, match=r"sparsity=0.9, nearest is sparsity=0.75: .*'conv1' keeps 4"):
        fit(Global(), candidates, Budget(sparsity=0.9), sparsity)
    with pytest.raises(BudgetError, match=r"macs=0.1, nearest is macs=0.\d+: .*'conv1' keeps 4"):
        fit(Uniform(), candidates, Budget(macs=0.1), macs(0.0))
    free = scored(channels("conv1", 8, minimum=0))
    with pytest.raises(BudgetError, match="the rest is not prunable"):
        fit(Uniform(), free, Budget(macs=0.1), macs(0.2))
    done = scored(weights("w", 8), gone={"w": torch.arange(8) < 5})
    with pytest.raises(BudgetError, match="5 units are gone already"):
        fit(Uniform(), done, Budget(sparsity=0.25), sparsity)


def test_an_allocation_that_jumps_over_the_budget_is_refused():
    def eights(candidates, level):
        return {u.name: candidates.lowest(u, 8 * math.floor(level * u.num / 8)) for u in candidates.units}

    candidates = scored(weights("w", 64))
    assert counts(fit(eights, candidates, Budget(sparsity=0.5), sparsity)[0]) == {"w": 32}
    with pytest.raises(BudgetError, match=r"sparsity=0.4, nearest is sparsity=0.375 and sparsity=0.5: .*jumps"):
        fit(eights, candidates, Budget(sparsity=0.4), sparsity)


def test_compression_is_a_floor():
    candidates = scored(weights("w", 100))

    def price(removed):
        return {"compression": 110 / (110 - int(removed["w"].sum()))}

    removed, achieved = fit(Global(), candidates, Budget(compression=4), price)
    assert counts(removed) == {"w": 83}  # 110 / 27.5 = 4: of 110 at most 27 may stay
    assert achieved["compression"] == 110 / 27
    with pytest.raises(BudgetError, match="compression=12, nearest is compression=11"):
        fit(Global(), candidates, Budget(compression=12), price)


@pytest.mark.parametrize(
    ("compression", "density"),
    [(2, 0.49412), (4, 0.24118), (8, 0.11471), (16, 0.05148), (32, 0.01986), (64, 0.00405)],
)
def test_compression_of_a_whole_network_leaves_the_published_density(compression, density):
    """LeNet-5 as in ShrinkBench: 431 080 parameters, the classifier's 5 010 left alone."""
    candidates = scored(weights("conv1", 520), weights("conv2", 25050), weights("fc1", 400500))

    def price(removed):
        return {"compression": 431080 / (431080 - sum(counts(removed).values()))}

    removed, achieved = fit(Global(), candidates, Budget(compression=compression), price)
    assert 1 - sparsity(removed)["sparsity"] == pytest.approx(density, abs=6e-6)
    assert compression <= achieved["compression"] < compression * (1 + 1e-3)


def test_all_of_a_network_can_go():
    candidates = scored(weights("w", 4))
    everything = {"sparsity": 1.0, "compression": math.inf}
    assert fit(Global(), candidates, Budget(sparsity=1), lambda r: everything)[0]["w"].tolist() == [True] * 4


def test_budgets_that_are_missing_or_not_wanted_are_refused():
    candidates = scored(weights("w", 4))
    assert counts(fit(PerLayer({"w": 0.5}), candidates, None, sparsity)[0]) == {"w": 2}
    with pytest.raises(InputError, match="needs a budget"):
        fit(Uniform(), candidates, None, sparsity)
    with pytest.raises(InputError, match="takes no budget"):
        fit(PerLayer({"w": 0.5}), candidates, Budget(sparsity=0.5), sparsity)
    with pytest.raises(InputError, match="nothing prices macs"):
        fit(Uniform(), candidates, Budget(macs=0.5), sparsity)


@pytest.mark.parametrize(("broken", "message"), [
    (lambda c, level: {}, "nothing for 'w'"),
    (lambda c, level: {"w": torch.ones(4)}, "float32"),
    (lambda c, level: {"w": torch.ones(3, dtype=torch.bool)}, r"\(3,\)"),
    (lambda c, level: {"w": torch.zeros(4, dtype=torch.bool)}, "brings back"),
    (lambda c, level: {"w": torch.ones(4, dtype=torch.bool), "v": torch.ones(1, dtype=torch.bool)}, "'v'"),
])  # fmt: skip
def test_what_a_users_allocation_returns_is_checked(broken, message):
    candidates = scored(weights("w", 4), gone={"w": torch.tensor([True, False, False, False])})
    with pytest.raises(InputError, match=message):
        fit(broken, candidates, Budget(sparsity=0.5), sparsity)


def test_candidates_that_do_not_agree_are_refused():
    unit = weights("w", 3)
    for units, scores, gone in [
        ((unit, unit), {"w": torch.zeros(3)}, {}),
        ((unit,), {}, {}),
        ((unit,), {"w": torch.zeros(2)}, {}),
        ((unit,), {"w": torch.zeros(3)}, {"v": torch.zeros(3, dtype=torch.bool)}),
        ((unit,), {"w": torch.zeros(3)}, {"w": torch.zeros(2, dtype=torch.bool)}),
    ]:
        with pytest.raises(InputError):
            Candidates(units, scores, gone=gone)


@pytest.mark.parametrize("level", [-0.1, 1.1, math.nan])
def test_levels_out_of_range_are_refused(level):
    candidates = scored(weights("w", 3))
    for allocation in with_budget(candidates) + with_amounts(candidates)[:-1]:
        with pytest.raises(InputError, match="level"):
            allocation(candidates, level)


def test_words():
    assert resolve("uniform") == Uniform()
    assert resolve("global") == Global("auto")
    assert resolve({"*": 0.5}) == PerLayer({"*": 0.5})
    own = Threshold(1.0)
    assert resolve(own) is own
    with pytest.raises(InputError, match="nearest: uniform"):
        resolve("unifrom")
    with pytest.raises(InputError, match="table"):
        resolve("sensitivity")
    for wrong in (0.5, Uniform):
        with pytest.raises(InputError, match="callable"):
            resolve(wrong)
