"""Rankings over layers: LAMP, isomorphic groups, and the normalizations, against loops in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from topiarist.allocation import Candidates, Global, Isomorphic, Lamp
from topiarist.allocation.isomorphic import groups
from topiarist.allocation.lamp import lamp
from topiarist.allocation.normalize import NORMALIZATIONS, comparable
from topiarist.errors import InputError
from topiarist.models import VisionTransformer, build
from topiarist.plan import Units
from topiarist.planning import Planner
from topiarist.saliency import Magnitude
from topiarist.structure import Channel, Weight


def of_scores(**scores):
    scores = {name: torch.as_tensor(s, dtype=torch.float64) for name, s in scores.items()}
    return Candidates(tuple(Units(n, len(s), (), n, "Linear") for n, s in scores.items()), scores)


def counts(removed):
    return {name: int(mask.sum()) for name, mask in removed.items()}


def lamp_by_loop(scores):
    order = sorted(range(len(scores)), key=lambda i: (scores[i], i))
    found = [0.0] * len(scores)
    for place, i in enumerate(order):
        found[i] = scores[i] ** 2 / sum(scores[j] ** 2 for j in order[place:])
    return found


def test_the_golden_scores():
    torch.testing.assert_close(lamp(torch.tensor([1.0, 2.0, 3.0])), torch.tensor([1 / 14, 4 / 13, 1]).double())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=20), st.floats(1e-12, 1e12))
def test_scores_are_those_of_a_loop_whatever_the_scale(scores, scale):
    found = lamp(torch.tensor(scores, dtype=torch.float64) * scale)
    assert found.tolist() == pytest.approx(lamp_by_loop(scores), rel=1e-9)
    assert float(found.max()) == 1
    assert int((found > 0.5 + 1e-9).sum()) == 1
    order = np.argsort(np.array(scores) * scale, kind="stable")
    assert (np.diff(found.numpy()[order]) >= 0).all()


def test_a_sum_over_what_is_smaller_is_caught():
    scores = np.array([1.0, 2.0, 3.0])
    sabotaged = scores**2 / np.cumsum(scores**2)
    assert sabotaged.tolist() != pytest.approx(lamp_by_loop(scores.tolist()))


def test_layers_of_other_scales_lose_the_same_where_global_magnitude_takes_one_alone():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(50, generator=generator), torch.rand(50, generator=generator)
    assert counts(Lamp()(of_scores(a=a, b=b), 0.6)) == counts(Lamp()(of_scores(a=1000 * a, b=b), 0.6))
    assert counts(Global("none")(of_scores(a=1000 * a, b=b), 0.5)) == {"a": 0, "b": 50}


def test_no_layer_is_emptied_before_all_have_one_unit_left():
    candidates = of_scores(a=[1e-6] * 8, b=[5.0, 1e-9, 3.0], c=[0.0, 0.0], d=[7.0])
    assert counts(Lamp()(candidates, 10 / 14)) == {"a": 7, "b": 2, "c": 1, "d": 0}
    assert counts(Lamp()(candidates, 1.0)) == {"a": 8, "b": 3, "c": 2, "d": 1}


def test_units_gone_do_not_count_and_infinite_scores_stay():
    units = (Units("a", 4, ()),)
    gone = {"a": torch.tensor([False, True, False, False])}
    candidates = Candidates(units, {"a": torch.tensor([1.0, 9.0, 2.0, 3.0])}, gone=gone)
    assert Lamp()(candidates, 0.5)["a"].tolist() == [True, True, False, False]
    assert lamp(torch.tensor([1.0, torch.inf, 2.0])).tolist() == pytest.approx([0.2, torch.inf, 1.0])
    assert lamp(torch.zeros(4)).tolist() == pytest.approx([1 / 4, 1 / 3, 1 / 2, 1])
    with pytest.raises(InputError, match="magnitudes"):
        Lamp()(of_scores(a=[-1.0, 2.0]), 0.5)


# ------------------------------------------------------------------ normalizations

BY_NUMPY = {
    "none": lambda s: s,
    "sum": lambda s: s / np.abs(s).sum(),
    "mean": lambda s: s / np.abs(s).mean(),
    "max": lambda s: s / np.abs(s).max(),
    "fro": lambda s: s / np.sqrt((s**2).sum()),
    "rms": lambda s: s / np.sqrt((s**2).mean()),
    "min-max": lambda s: (s - s.min()) / (s.max() - s.min()),
    "gaussian": lambda s: (s - s.mean()) / s.std(),
}


@pytest.mark.parametrize("how", NORMALIZATIONS)
def test_normalizations_are_their_formulas(how):
    scores = torch.randn(30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gone = torch.arange(30) % 5 == 0
    candidates = Candidates((Units("a", 30, ()),), {"a": scores}, gone={"a": gone})
    found = comparable(candidates, how)["a"]
    np.testing.assert_allclose(found[~gone].numpy(), BY_NUMPY[how](scores[~gone].numpy()), rtol=1e-12)
    assert torch.equal(torch.argsort(found), torch.argsort(scores))
    equal = comparable(of_scores(a=[2.0, 2.0], b=[0.0, 0.0]), how)
    assert all(bool(scores.isfinite().all()) for scores in equal.values())


# ------------------------------------------------------------------ isomorphic groups


def test_each_group_loses_the_same_fraction_in_a_ranking_of_its_own():
    generator = torch.Generator().manual_seed(0)
    scores = {n: torch.rand(10, generator=generator) * (100 if n[0] == "c" else 1) for n in ("c1", "c2", "l1", "l2")}
    units = tuple(Units(n, 10, (), n, "Conv2d" if n[0] == "c" else "Linear") for n in scores)
    candidates = Candidates(units, scores)
    removed = Isomorphic("none")(candidates, 0.3)
    for kind in "cl":
        pool = np.concatenate([scores[kind + i].numpy() for i in "12"])
        mask = np.concatenate([removed[kind + i].numpy() for i in "12"])
        assert sorted(np.flatnonzero(mask)) == sorted(np.argsort(pool)[:6])
    assert counts(Global("none")(candidates, 0.3)) != counts(removed)


def of_model(model, x, structure):
    return Planner.of(model, x, structure, (), None).candidates(Magnitude(2), None, None, {})


def test_layers_of_the_same_kind_are_found_in_real_networks():
    vit = VisionTransformer()
    x = torch.zeros(1, 3, 32, 32)
    found = [sorted(names) for names in groups(of_model(vit, x, Channel())).values()]
    assert sorted(map(len, found)) == [1, 4, 4]
    assert [f"blocks.{i}.fc1.weight:0" for i in range(4)] in found  # the values of attention are a group of their own
    resnet = build("resnet20", (3, 32, 32), 10)
    by_kernel = groups(of_model(resnet, x, Weight()))
    assert sum(len(names) for names in by_kernel.values()) == len(of_model(resnet, x, Weight()).units)
    assert {len(names) for names in by_kernel.values()} == {19, 1}


def test_widths_do_not_tell_groups_apart_and_neighbours_do():
    net = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 5), nn.Linear(5, 3))
    found = groups(of_model(net, torch.zeros(2, 4), Channel()))
    assert sorted(map(sorted, found.values())) == [["0.weight:0", "3.weight:0"], ["1.weight:0"]]
