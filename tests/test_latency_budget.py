"""Budgets of measured latency: the prediction, its correction and its table, by a clock that the tests turn."""

from __future__ import annotations

import json
import logging
import random
from dataclasses import replace

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import topiarist
from topiarist.allocation.within import within
from topiarist.cli.app import app
from topiarist.errors import BudgetError, FormatError, InputError
from topiarist.measure import executors
from topiarist.measure.executors import prepare, quiet, ratio, wall_clock, with_batch
from topiarist.measure.interpolate import interpolate
from topiarist.measure.parts import parts_of
from topiarist.measure.table import LatencyTable
from topiarist.models import build
from topiarist.plan import Budget
from topiarist.planning import Planner
from topiarist.saliency import Magnitude
from topiarist.structure import Channel, Head, Weight

X = torch.zeros(2, 3, 8, 8)


class Net(nn.Module):
    """A residual sum, a concatenation, an activation that is called twice, and functions outside of modules."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 40, 3, padding=1)
        self.inner = nn.Conv2d(40, 56, 3, padding=1)
        self.outer = nn.Conv2d(56, 40, 3, padding=1)
        self.branch = nn.Conv2d(40, 24, 1)
        self.act = nn.ReLU()
        self.head = nn.Linear(64, 5)

    def forward(self, x):
        x = self.act(self.stem(x))
        x = x + self.outer(self.act(self.inner(x)))
        return self.head(torch.cat([x, self.branch(x)], 1).mean((2, 3)))


def cost_of_weights(module):
    """Milliseconds that are bilinear in the widths: weights, and something for the call."""
    layers = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return sum(0.05 + m.weight.numel() / 500 for m in layers)


class Clock:
    """A fake one: parts take ``cost_of_weights``, whole models a straight line of their sum bent by ``bend``."""

    def __init__(self, bend=1.0, noise=None, whole=(0.7, 1.3)):
        self.bend, self.whole = bend, whole
        self.noise = random.Random(0) if noise else None  # noqa: S311
        self.num = 0

    def truth(self, model):
        parts = cost_of_weights(model)
        return parts if not isinstance(model, Net) else self.whole[0] + self.whole[1] * parts**self.bend

    def __call__(self, executable):
        self.num += 1
        spike = 1.0 if self.noise is None or self.noise.random() < 0.7 else self.noise.uniform(1, 10)
        return self.truth(executable.module) * spike


def planner_of(clock, net=None, structure=None):
    made = Planner.of(net or Net(), X, structure or Channel(), (), None)
    return Planner(made.model, made.axes, made.structure, example_inputs=X, clock=clock)


def planned(clock, budget, net=None, allocation="uniform"):
    planner, anchored = planner_of(clock, net).timed(budget)
    return planner.plan(Magnitude(2), topiarist.allocation.resolve(allocation), anchored)


# ------------------------------------------------------------------ prediction


def test_a_bilinear_cost_is_predicted_exactly_at_any_widths():
    torch.manual_seed(0)
    clock = Clock()
    planner, budget = planner_of(clock).timed(Budget(latency_ms=1.0))
    assert budget.dense_ms == pytest.approx(clock.truth(planner.model))
    generator = random.Random(1)  # noqa: S311
    for _ in range(10):
        kept = {u.name: generator.randint(1, u.num) for u in planner.units}
        expected = clock.truth(planner._cut(kept))
        assert planner.prediction(kept) == pytest.approx(expected, rel=1e-9)
    whole = {u.name: u.num for u in planner.units}
    one_by_one = sum(planner.prediction({**whole, n: k}) - budget.dense_ms for n, k in kept.items())
    assert budget.dense_ms + one_by_one != pytest.approx(expected, rel=0.05)  # what sums over axes would say


def test_a_convolution_is_measured_at_every_pair_of_widths_and_twins_once():
    planner, _ = planner_of(Clock()).timed(Budget(latency_ms=1.0))
    names, times = planner.prediction.parts["inner#0"]
    assert set(names) == {"stem.weight:0", "inner.weight:0"}
    assert len(times) == 25
    assert {"act#0", "act#1"} <= set(planner.prediction.parts)
    net = build("resnet20")
    found = parts_of(net, torch.zeros(1, 3, 32, 32))
    assert len({part.key for part in found.values()}) < len(found) / 2


def test_parts_leave_no_hook_and_no_trace():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = torch.get_rng_state()
    parts_of(net, torch.ones(3, 4))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert torch.equal(state, torch.get_rng_state())
    assert all(m.training for m in net.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_a_model_that_needs_values_is_taken_apart_as_well():
    class Depends(nn.Sequential):
        def forward(self, x):
            return super().forward(x if float(x.sum()) > 1 else x + 1)

    assert list(parts_of(Depends(nn.Linear(2, 2)), torch.zeros(1, 2))) == ["0#0"]


def test_interpolation_is_multilinear_and_flat_outside():
    grid = {(a, b): 2.0 * a + 3 * b + a * b for a in (1, 4, 9) for b in (2, 6)}
    assert interpolate(grid, (3, 5)) == pytest.approx(2 * 3 + 3 * 5 + 15)
    assert interpolate(grid, (20, 1)) == grid[9, 2]
    scattered = {(1, 1): 1.0, (2, 3): 6.0, (4, 4): 16.0}
    assert interpolate(scattered, (2, 4)) == pytest.approx(8.0)
    assert interpolate({(): 3.0}, ()) == 3.0
    with pytest.raises(ValueError, match="nothing"):
        interpolate({}, ())


# ------------------------------------------------------------------ the target


@pytest.mark.parametrize("part", [0.8, 0.6, 0.5, 0.3])
@pytest.mark.parametrize("allocation", ["uniform", "global", "knapsack:latency_ms"])
def test_the_target_is_met_within_five_percent(part, allocation):
    torch.manual_seed(0)
    clock, net = Clock(), Net()
    target = part * clock.truth(net)
    plan = planned(clock, Budget(latency_ms=target), net, allocation)
    small = topiarist.shrink(net, plan, X)
    assert clock.truth(small) == pytest.approx(target, rel=0.05)
    assert plan.achieved["latency_ms"] == pytest.approx(clock.truth(small))
    assert len(plan.notes) == 1


@pytest.mark.parametrize(("bend", "noise"), [(1.3, False), (0.7, False), (1.0, True), (1.2, True)])
def test_a_prediction_that_is_wrong_or_disturbed_is_corrected(bend, noise):
    torch.manual_seed(0)
    clock, net = Clock(bend, noise), Net()
    for part in (0.75, 0.5):
        target = part * clock.truth(net)
        plan = planned(clock, Budget(latency_ms=target), net, "global")
        assert clock.truth(topiarist.shrink(net, plan)) == pytest.approx(target, rel=0.05)


def test_without_correction_the_wrong_prediction_would_miss():
    clock, net = Clock(1.3), Net()
    target = 0.5 * clock.truth(net)
    planner, budget = planner_of(clock, net).timed(Budget(latency_ms=target))
    candidates = planner.candidates(Magnitude(2), None, None, {})
    removed, _ = topiarist.allocation.fit(
        topiarist.allocation.Uniform(), candidates, budget, lambda r: planner.price(r, wanted=("latency_ms",))
    )
    small = topiarist.shrink(net, planner.make(removed))
    assert clock.truth(small) != pytest.approx(target, rel=0.05)


def test_what_cannot_be_removed_is_named():
    clock, net = Clock(whole=(6.0, 1.0)), Net()
    with pytest.raises(BudgetError, match=r"asked for 3, and 6\.\d+ is measured when all goes that may .* keeps 1"):
        planned(clock, Budget(latency_ms=3.0), net)


def test_a_target_above_the_whole_model_removes_nothing_and_says_so():
    plan = planned(Clock(), Budget(latency_ms=1000.0))
    assert plan.num_removed == 0
    assert "nothing needs to go" in plan.notes[1]
    assert type(plan).from_json(plan.to_json()).notes == plan.notes


def test_steps_too_large_are_reported():
    steps = [{"a": torch.tensor([i < n for i in range(3)])} for n in range(4)]

    def solve(ceiling):
        for gone in steps[:3]:
            if float((~gone["a"]).sum()) <= ceiling:
                return gone, float((~gone["a"]).sum())
        raise BudgetError("no")

    best, note = within(1.5, solve, lambda: (steps[3], 0.0), lambda r: float((~r["a"]).sum()))
    assert best.measured == 1.0
    assert "none came nearer" in note
    with pytest.raises(BudgetError, match="no"):
        within(0.5, solve, lambda: (steps[2], 1.0), lambda r: float((~r["a"]).sum()))


def test_dense_ms_says_what_the_milliseconds_are_of():
    clock, net = Clock(), Net()
    plan = planned(clock, Budget(latency_ms=50.0, dense_ms=100.0), net)  # on a machine of another speed
    assert clock.truth(topiarist.shrink(net, plan)) / clock.truth(net) == pytest.approx(0.5, rel=0.05)


def test_a_schedule_approaches_it(monkeypatch):
    clock, net = Clock(), Net()
    made = Planner.of
    monkeypatch.setattr(Planner, "of", lambda *given: replace(made(*given), clock=clock))
    rows = []
    target = 0.5 * clock.truth(net)
    result = topiarist.prune(net, X, structure="channel", budget=Budget(latency_ms=target), steps=2,
                             schedule="linear", on_step=lambda row: rows.append(dict(row)))  # fmt: skip
    reached = [row["latency_ms"] / clock.truth(net) for row in result.curve]
    assert reached == pytest.approx([0.75, 0.5], rel=0.05)
    assert clock.truth(result.model) == pytest.approx(target, rel=0.05)
    assert rows[0]["timing"] == 1


# ------------------------------------------------------------------ the table


def test_an_interrupted_table_goes_on_where_it_was(tmp_path):
    class Stops(Clock):
        def __call__(self, executable):
            if self.num == 40:
                raise KeyboardInterrupt
            return super().__call__(executable)

    path = tmp_path / "latency.json"
    with pytest.raises(KeyboardInterrupt):
        planner_of(Stops()).timed(Budget(latency_ms=1.0), path)
    assert sum(map(len, LatencyTable.from_json(path.read_text()).times.values())) == 40
    rest, alone = Clock(), Clock()
    resumed, _ = planner_of(rest).timed(Budget(latency_ms=1.0), path)
    fresh, _ = planner_of(alone).timed(Budget(latency_ms=1.0))
    assert rest.num == alone.num - 40
    assert resumed.prediction.parts == fresh.prediction.parts
    again = Clock()
    planner_of(again).timed(Budget(latency_ms=1.0), path)
    assert again.num == 3 * 15  # whole models alone are timed anew


def test_a_table_of_another_place_or_a_damaged_one_is_refused(tmp_path):
    path = tmp_path / "latency.json"
    planner_of(Clock()).timed(Budget(latency_ms=1.0), path)
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "where": {**raw["where"], "device": "abacus"}}))
    with pytest.raises(InputError, match="device: abacus there, cpu now"):
        planner_of(Clock()).timed(Budget(latency_ms=1.0), path)
    for text in ("{", "[]", json.dumps({**raw, "version": 2}), json.dumps({**raw, "times": {"a": ["x"]}})):
        path.write_text(text)
        with pytest.raises(FormatError, match="table"):
            planner_of(Clock()).timed(Budget(latency_ms=1.0), path)


def test_progress_is_told():
    told = []
    planner_of(Clock()).timed(Budget(latency_ms=1.0), progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1]
    assert all(done <= total for done, total in told)


# ------------------------------------------------------------------ executors and clocks


def test_what_cannot_be_used_is_refused():
    with pytest.raises(InputError, match="zeros take as long"):
        planner_of(Clock(), structure=Weight()).timed(Budget(latency_ms=1.0))
    with pytest.raises(InputError, match="try cpu"):
        planner_of(Clock()).timed(Budget(latency_ms=1.0, device="cuda:99"))
    with pytest.raises(InputError, match="nearest: eager"):
        Budget(latency_ms=1.0, executor="eagre")
    with pytest.raises(InputError, match=r"batch says how .* one of macs"):
        Budget(macs=0.5, batch=3)
    with pytest.raises(InputError, match="no fraction"):
        _ = Budget(latency_ms=1.0).removed
    budget = Budget(latency_ms=1.0, dense_ms=4.0)
    assert budget.removed == 0.75
    assert budget.with_removed(0.5) == Budget(latency_ms=2.0, dense_ms=4.0)


def test_a_runtime_that_is_not_installed_says_what_to_install():
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        with pytest.raises(InputError, match="pip install onnx onnxscript onnxruntime"):
            prepare(nn.Linear(2, 2), torch.zeros(1, 2), "onnxruntime")
    else:
        found = prepare(nn.Linear(2, 2), torch.zeros(1, 2), "onnxruntime").run()
        assert found[0].shape == (1, 2)


def test_an_exporter_says_errors_alone(caplog):
    logger = logging.getLogger("topiarist.tests.exporter")
    with executors._errors_alone(logger.name):
        logger.warning("a library is not installed")
        logger.error("it failed")
    logger.warning("afterwards")
    assert [record.message for record in caplog.records] == ["it failed", "afterwards"]


def test_batches_are_made_of_the_examples():
    inputs = {"x": torch.arange(6.0).view(2, 3), "scale": torch.ones(3), "flag": True}
    found = with_batch(inputs, 5)
    assert found["x"][:, 0].tolist() == [0, 3, 0, 3, 0]
    assert found["scale"].shape == (3,)
    assert with_batch(inputs, 1)["x"].shape == (1, 3)
    assert with_batch(inputs, None) is inputs


def test_quiet_times_and_ratios_see_through_spikes():
    generator = random.Random(0)  # noqa: S311
    own = [1.0 * (1 + 9 * (generator.random() < 0.5)) for _ in range(15)]
    other = [2.0 * (1 + 9 * (generator.random() < 0.5)) for _ in range(15)]
    assert quiet(own) == 1.0
    assert ratio(own, other) == pytest.approx(0.5)
    drift = [1 + i / 5 for i in range(15)]
    assert ratio([a * d for a, d in zip([1.0] * 15, drift, strict=True)], [2 * d for d in drift]) == pytest.approx(0.5)


def test_the_wall_clock_runs_a_real_model():
    """No time is asserted: what else the machine does is not known."""
    net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    x = torch.zeros(8, 16)
    assert wall_clock(prepare(net, x)) > 0
    budget = Budget(latency_ms=1000.0, batch=4)
    plan = topiarist.plan(net, x, structure="channel", budget=budget)
    assert plan.achieved["latency_ms"] > 0
    assert "on cpu, eager, batch 4" in plan.notes[0]


def test_heads_can_be_timed_too():
    vit = build("vit")
    made = Planner.of(vit, torch.zeros(1, 3, 32, 32), Head(), (), None)
    planner = Planner(made.model, made.axes, made.structure, example_inputs=torch.zeros(1, 3, 32, 32), clock=Clock())
    planner, _ = planner.timed(Budget(latency_ms=1.0))
    assert any("qkv" in name and axes for name, (axes, _) in planner.prediction.parts.items())


def test_a_prediction_above_what_is_measured_removes_nothing_that_need_not_go():
    clock = Clock(0.9)
    planner, budget = planner_of(clock).timed(Budget(latency_ms=500.0))
    assert planner.prediction({}) != pytest.approx(budget.dense_ms, rel=1e-3)
    plan = planner.plan(Magnitude(2), topiarist.allocation.Uniform(), budget)
    assert plan.num_removed == 0


def test_the_command_line_takes_it(tmp_path):
    options = ["--structure", "channel", "--latency-ms", "1000", "--epochs", "0.05", "--recover", "none"]
    found = CliRunner().invoke(app, ["prune", *options, "--out", str(tmp_path / "run")])
    assert found.exit_code == 0, found.output
    refused = CliRunner().invoke(app, ["prune", "--latency-ms", "1", "--out", str(tmp_path / "other")])
    assert refused.exit_code == 2
    assert "zeros take as long" in refused.output
