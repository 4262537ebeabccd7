"""The record of a run, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import nn

import topiarist
from topiarist.allocation.sensitivity import Cell, SensitivityTable
from topiarist.report import RunRecord, StepRow
from topiarist.report import build as room
from topiarist.report.build import build


@dataclass(frozen=True)
class Done:
    """What `topiarist.prune` would return."""

    model: nn.Module
    plan: topiarist.Plan
    curve: tuple[dict[str, float], ...]
    history: tuple[dict[str, float], ...] = ()


def row(step: int, sparsity: float, **more: float) -> dict[str, float]:
    return {"step": step, "sparsity": sparsity, "compression": 1 / (1 - sparsity), "macs": 1 - sparsity, **more}


@pytest.fixture
def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 2)).eval()


@pytest.fixture
def masked(dense: nn.Module) -> Done:
    model = nn.Sequential(nn.Linear(8, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 2)).eval()
    model.load_state_dict(dense.state_dict())
    plan = topiarist.plan(model, torch.zeros(1, 8), budget=topiarist.Budget(sparsity=0.5), allocation="uniform")
    topiarist.mask(model, plan)
    history = tuple({"step": s, "batch": b, "loss": 1 / (s + b), "lr": 0.1} for s in (1, 2) for b in (0, 1))
    return Done(model, plan, (row(1, 0.25, accuracy=0.8), row(2, 0.5, accuracy=0.7)), history)


@pytest.fixture
def shrunk(dense: nn.Module) -> Done:
    x = torch.zeros(1, 8)
    plan = topiarist.plan(dense, x, structure="channel", budget=topiarist.Budget(sparsity=0.5))
    return Done(topiarist.shrink(dense, plan, x), plan, (row(1, 0.5, loss=0.3),))


def made(dense: nn.Module, results: list[Done], **more: Any) -> RunRecord:
    read = {id(dense): 0.9, **{id(r.model): 0.7 for r in results}}
    return build(
        "a run",
        dense,
        results,
        torch.zeros(1, 8),
        evaluate=lambda model: {"loss": 0.1, "accuracy": read[id(model)]},
        batch=torch.zeros(100, 8),
        **more,
    )


@pytest.fixture(autouse=True)
def _no_time_for_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_SECONDS", 0.01)


def test_the_networks_side_by_side(dense: nn.Module, masked: Done, shrunk: Done) -> None:
    first, second, third = made(dense, [masked, shrunk]).variants
    assert (first.name, first.accuracy, first.num_params, first.macs) == ("dense", 0.9, 90 + 20 + 22, 80 + 20)
    assert first.theoretical_speedup is None
    assert first.latency_ms is not None
    assert (second.name, second.accuracy, second.num_params) == ("masked", 0.7, 132)
    assert (second.macs, second.theoretical_speedup) == (50, 2.0)
    assert (third.name, third.num_params, third.macs) == ("shrunk", 45 + 10 + 12, 50)
    assert third.theoretical_speedup == 2.0
    assert third.measured_speedup is not None
    assert third.baseline == "eager dense, batch 64, 1 thread, cpu"


def test_two_of_a_kind_are_told_apart(dense: nn.Module, shrunk: Done) -> None:
    other = replace(shrunk, plan=replace(shrunk.plan, structure="head"))
    assert [v.name for v in made(dense, [shrunk, other]).variants] == ["dense", "shrunk (channel)", "shrunk (head)"]


def test_layers_before_and_after(dense: nn.Module, masked: Done, shrunk: Done) -> None:
    rows = made(dense, [masked, shrunk]).layers
    assert [(r.series, r.name, r.kind) for r in rows] == [
        *(("weight", "0", "Linear"), ("weight", "3", "Linear")),
        *(("channel", "0", "Linear"), ("channel", "3", "Linear")),
    ]
    assert [(r.num_before, r.num_after, r.macs_before, r.macs_after) for r in rows] == [
        *((90, 50, 80, 40), (22, 12, 20, 10)),  # biases stay under a mask of weights
        *((90, 45, 80, 40), (22, 12, 20, 10)),
    ]
    assert [(r.shape_before, r.shape_after) for r in rows[2:]] == [((10, 8), (5, 8)), ((2, 10), (2, 5))]


def test_the_trade_off_begins_with_the_dense_network(dense: nn.Module, masked: Done) -> None:
    points = made(dense, [masked]).curve
    assert [(p.series, p.step, p.accuracy, p.compression, p.macs_remaining) for p in points] == [
        ("weight", 0, 0.9, 1.0, 1.0),
        ("weight", 1, 0.8, 1 / 0.75, 0.75),
        ("weight", 2, 0.7, 2.0, 0.5),
    ]


def test_training_steps_count_on_over_pruning_steps(dense: nn.Module, masked: Done, shrunk: Done) -> None:
    history = made(dense, [masked, shrunk], training=[{"step": 0, "loss": 2.0, "lr": 0.5}]).history
    assert history == (
        StepRow(series="dense", step=0, loss=2.0, lr=0.5, removed=0.0),
        StepRow(series="weight", step=0, loss=1.0, lr=0.1, removed=0.25),
        StepRow(series="weight", step=1, loss=1 / 2, lr=0.1, removed=0.25),
        StepRow(series="weight", step=2, loss=1 / 2, lr=0.1, removed=0.5),
        StepRow(series="weight", step=3, loss=1 / 3, lr=0.1, removed=0.5),
        StepRow(series="channel", step=1, loss=0.3, removed=0.5),  # nothing was trained
    )


def test_histograms_share_their_bins_and_count_zeros_apart(dense: nn.Module, masked: Done) -> None:
    before, after = made(dense, [masked]).histograms[:2]
    assert (before.layer, before.when, after.when) == ("0", "before", "after")
    assert before.edges == after.edges
    assert (sum(before.counts), before.num_zero, sum(after.counts), after.num_zero) == (80, 0, 40, 40)


def test_the_verdicts_name_what_was_measured_and_why(dense: nn.Module, masked: Done, shrunk: Done) -> None:
    first, second = made(dense, [masked, shrunk]).verdict.split("\n")
    assert first.startswith("Masked: 2.00× theoretical, ")
    assert first.endswith("because dense kernels multiply zeros like any other number.")
    assert second.startswith("Shrunk: 2.00× theoretical, ")
    assert "× measured against eager dense at batch 64 on 1 thread" in second


def test_the_rest(dense: nn.Module, masked: Done) -> None:
    table = SensitivityTable(loss=0.1, accuracy=0.9, cells=(Cell("0.weight", 0.5, 0.2, 0.8),))
    seen: list[tuple[int, int]] = []
    record = made(dense, [masked], table=table, command="c", recipe={"a": 1}, progress=lambda *at: seen.append(at))
    assert record.sensitivity is not None
    assert [(r.layer, r.ratio, r.loss, r.accuracy) for r in record.sensitivity.rows] == [("0.weight", 0.5, 0.2, 0.8)]
    assert (record.command, record.recipe, seen) == ("c", {"a": 1}, [(1, 2), (2, 2)])
    assert record.environment["threads"] == torch.get_num_threads()
    free = [axis for axis in record.axes if axis.status == "free"]
    assert [(axis.name, axis.size) for axis in free] == [("0.weight:0", 10)]
    assert all(axis.reason for axis in record.axes if axis.status == "pinned")
    assert RunRecord.from_json(record.to_json()) == record


def test_networks_are_left_as_they_were(dense: nn.Module, masked: Done) -> None:
    before = {name: t.clone() for name, t in masked.model.state_dict().items()}
    made(dense, [masked])
    assert all(torch.equal(t, before[name]) for name, t in masked.model.state_dict().items())
