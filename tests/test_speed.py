"""What made planning quick changes no plan; the page on speed says what its rows say."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

import topiarist
from topiarist.allocation import Global, Uniform
from topiarist.allocation.select import select
from topiarist.errors import InputError
from topiarist.models import VisionTransformer
from topiarist.plan import Budget, Member, Units
from topiarist.planning import Planner
from topiarist.saliency import Magnitude
from topiarist.saliency.random import Random
from topiarist.structure import Channel
from topiarist.structure.base import slices
from topiarist.testing import zoo

PAGES = Path(__file__).parents[1] / "benchmarks" / "results"


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("step", [1, 7, 1 << 18])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norms_in_blocks(p: int, dim: int, step: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("topiarist.saliency.magnitude._STEP", step)
    weight = torch.randn(6, 5, 3, dtype=dtype)
    unit, before = torch.arange(weight.shape[dim]), weight.clone()
    found = Magnitude(p)(slices(Units("w", len(unit), (Member("w", dim, unit),)), {"w": weight}))
    rows = np.moveaxis(weight.double().numpy(), dim, 0).reshape(len(unit), -1)
    torch.testing.assert_close(found, torch.from_numpy((np.abs(rows) ** p).sum(1) ** (1 / p)), rtol=1e-14, atol=0)
    assert torch.equal(weight, before)


@pytest.mark.parametrize("p", [1, 2])
def test_norms_of_several_tensors(p: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones are taken together, those of another dtype apart, the large ones alone."""
    monkeypatch.setattr("topiarist.saliency.magnitude._SMALL", 12)
    tensors = {"a": torch.randn(4, 3), "b": torch.randn(4), "c": torch.randn(4).double(), "d": torch.randn(4, 5)}
    members = tuple(Member(name, 0, torch.arange(4)) for name in tensors)
    found = Magnitude(p)(slices(Units("a", 4, members), tensors))
    rows = np.concatenate([t.double().numpy().reshape(4, -1) for t in tensors.values()], axis=1)
    torch.testing.assert_close(found, torch.from_numpy((np.abs(rows) ** p).sum(1) ** (1 / p)), rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    "unit", [[0, 1, 2, 3], [0, 0, 1, 1], [0, 1, 0, 1], [1, 0, -1, -1], [-1, 0, 1, -1], [-1, -1, 1, 0]]
)
@pytest.mark.parametrize("dim", [0, 1])
def test_rows_hold_what_their_units_have(unit: list[int], dim: int) -> None:
    num = max(unit) + 1
    weight = torch.randn((4, 3) if dim == 0 else (3, 4))
    found = slices(Units("w", num, (Member("w", dim, torch.tensor(unit)),)), {"w": weight}).weights[0]
    for j in range(num):
        own = [weight.movedim(dim, 0)[i] for i in range(4) if unit[i] == j]
        assert sorted(found[j].tolist()) == sorted(torch.cat(own).tolist())


@pytest.mark.parametrize("allocation", [Uniform(), Global()])
def test_plans_are_those_of_the_radix_select(allocation, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lenet", "vit", "resnet_option_b", "grouped_query_attention"):
        model, inputs = zoo.build(name)
        planner = Planner(model, topiarist.trace(model, inputs), Channel())
        quick = planner.plan(Magnitude(), allocation, Budget(params=0.6))
        with monkeypatch.context() as patch:
            patch.setattr("topiarist.allocation.base._SORTED", 0)
            patch.setattr("topiarist.allocation.select._SORTED", 0)
            assert planner.plan(Magnitude(), allocation, Budget(params=0.6)) == quick


def test_only_the_price_of_the_budget_is_asked_for_on_the_way() -> None:
    model, inputs = zoo.build("lenet")
    planner = Planner(model, topiarist.trace(model, inputs), Channel())
    removed = {units.name: torch.arange(units.num) == 0 for units in planner.units}
    whole = planner.price(removed)
    for unit, value in whole.items():
        assert planner.price(removed, wanted=(unit,)) == {unit: value}


def test_an_order_is_made_once_per_set(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = zoo.build("vgg_bn")
    planner, calls = Planner(model, topiarist.trace(model, inputs), Channel()), []
    from topiarist.allocation import base

    ranking = base.ranking
    monkeypatch.setattr(base, "ranking", lambda scores: calls.append(1) or ranking(scores))
    planner.plan(Magnitude(), Uniform(), Budget(macs=0.37))
    assert len(calls) == len(planner.units)


def test_models_without_values_are_planned_in_an_order_of_its_own() -> None:
    with torch.device("meta"):
        model, x = VisionTransformer(), torch.zeros(2, 3, 32, 32)
    options = {"structure": "channel", "allocation": "uniform", "budget": Budget(sparsity=0.5)}
    plan = topiarist.plan(model, x, saliency="random", **options)
    assert plan == topiarist.plan(VisionTransformer(), torch.zeros(2, 3, 32, 32), saliency="random", **options)
    small = topiarist.shrink(model, plan, x)
    assert all(p.is_meta for p in small.parameters())
    first = topiarist.plan(model, x, saliency=lambda slices: torch.arange(slices.units.num).double(), **options)
    assert all(gone.tolist() == sorted(gone.tolist(), reverse=True) for gone in first.removed.values())


def test_weights_without_values_have_no_norm() -> None:
    with torch.device("meta"):
        model, x = VisionTransformer(), torch.zeros(2, 3, 32, 32)
    with pytest.raises(InputError, match=r"meta device have none; try saliency='random'"):
        topiarist.plan(model, x, structure="channel", saliency="l2", budget=Budget(sparsity=0.5))


def test_random_scores_are_where_the_weights_are_unless_they_are_nowhere() -> None:
    units = Units("w", 3, (Member("w", 0, torch.arange(3)),))
    here, nowhere = (Random()(slices(units, {"w": torch.zeros(3, 2, device=d)})) for d in ("cpu", "meta"))
    assert torch.equal(here, nowhere)


def test_a_kept_order_is_the_order_of_selection() -> None:
    from topiarist.allocation import Candidates

    scores = torch.tensor([0.5, -0.0, 0.0, 0.5, -1.0, float("inf")])
    gone = {"w": torch.tensor([False, False, True, False, False, True])}
    candidates = Candidates((Units("w", 6, ()),), {"w": scores}, gone=gone)
    for k in range(2, 7):
        assert torch.equal(candidates.lowest(candidates.units[0], k), select({"w": scores}, k, gone)["w"])


def test_a_cut_is_of_its_own_memory() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    plan = topiarist.plan(net, torch.zeros(1, 4), structure="channel", budget=Budget(sparsity=0.5))
    small = topiarist.shrink(net, plan)
    theirs = {p.untyped_storage().data_ptr() for p in net.parameters()}
    assert not theirs & {p.untyped_storage().data_ptr() for p in small.parameters()}


# --------------------------------------------------------------------------------------------------------- the page


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(PAGES))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return importlib.import_module("page")


def test_the_page_on_speed_is_generated_from_its_rows(page: ModuleType) -> None:
    assert page.OUT.read_text(encoding="utf-8") == page.render(*map(page.read, ("tracing", "growth", "adaptive")))


def test_a_changed_ratio_is_noticed(page: ModuleType) -> None:
    tracing, growth, adaptive = map(page.read, ("tracing", "growth", "adaptive"))
    next(row for row in tracing if "failed" not in row)["theirs"] *= 2
    assert page.render(tracing, growth, adaptive) != page.OUT.read_text(encoding="utf-8")
    growth[0]["ratio"] += 1
    assert page.render(page.read("tracing"), growth, adaptive) != page.OUT.read_text(encoding="utf-8")
    adaptive[0]["fresh"] += 1
    assert page.render(page.read("tracing"), page.read("growth"), adaptive) != page.OUT.read_text(encoding="utf-8")


def test_the_sample_is_large_enough(page: ModuleType) -> None:
    assert sum("failed" not in row for row in page.read("tracing")) >= 30
