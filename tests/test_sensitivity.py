"""The sensitivity analysis: its cells, its file, what it leaves behind; and the equal-loss rule."""

from __future__ import annotations

import contextlib
import copy
import itertools
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from topiarist.allocation import Candidates, Cell, Sensitivity, SensitivityTable, analyse, fit
from topiarist.errors import FormatError, InputError
from topiarist.plan import Budget, Member, Units

GRID = (0.25, 0.5, 1.0)


class Net(nn.Module):
    """Layer 1 is steep; layer 2 is the identity and weights too small to matter."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(8, 8, bias=False)
        self.fc2 = nn.Linear(8, 8, bias=False)
        self.fc3 = nn.Linear(8, 3, bias=False)
        self.norm = nn.BatchNorm1d(8)

    def forward(self, x):
        x = self.norm(self.fc1(x))
        return self.fc3(torch.relu(x + self.fc2(x)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    model = Net().double()
    with torch.no_grad():
        model.fc2.weight.mul_(1e-6)
    return model.train()


@pytest.fixture
def candidates(net):
    weights = {n: p.detach() for n, p in net.named_parameters() if "fc" in n}
    units = tuple(Units(n, w.numel(), (Member(n),), n.removesuffix(".weight"), "Linear") for n, w in weights.items())
    return Candidates(units, {n: w.abs().flatten() for n, w in weights.items()})


@pytest.fixture
def apply(net):
    """Zeroes units while open. ``apply.log`` is what it was asked for."""
    log = []

    @contextlib.contextmanager
    def apply(removed):
        log.append({name: mask.clone() for name, mask in removed.items()})
        saved = {name: net.get_parameter(name).detach().clone() for name in removed}
        try:
            with torch.no_grad():
                for name, mask in removed.items():
                    net.get_parameter(name).masked_fill_(mask.view(saved[name].shape), 0)
            yield
        finally:
            with torch.no_grad():
                for name, value in saved.items():
                    net.get_parameter(name).copy_(value)

    apply.log = log
    return apply


@pytest.fixture
def evaluate(net):
    x = torch.randn(64, 8, dtype=torch.float64)
    with torch.no_grad():
        y = copy.deepcopy(net).eval()(x).argmax(1)

    def evaluate(model):
        model.eval()
        with torch.no_grad():
            out = model(x)
        return {"loss": float(F.cross_entropy(out * 20, y)), "accuracy": float((out.argmax(1) == y).double().mean())}

    return evaluate


def state(net):
    return (
        {name: tensor.clone() for name, tensor in net.state_dict().items()},
        [module.training for module in net.modules()],
        torch.get_rng_state(),
    )


def same_state(one, other):
    return (
        all(torch.equal(one[0][name], other[0][name]) for name in other[0])
        and one[1] == other[1]
        and torch.equal(one[2], other[2])
    )


def test_cells_are_what_pruning_one_layer_by_hand_gives(net, candidates, apply, evaluate):
    before = state(net)
    seen = []
    table = analyse(net, candidates, apply, evaluate, GRID, progress=lambda done, total: seen.append((done, total)))
    assert same_state(state(net), before)
    assert seen == [(number, 9) for number in range(1, 10)]
    assert [(c.layer, c.ratio) for c in table.cells] == list(itertools.product(candidates.scores, GRID))
    assert (table.layers, table.ratios) == (tuple(candidates.scores), GRID)
    assert (table.loss, table.accuracy) == tuple(evaluate(copy.deepcopy(net)).values())
    for cell in table.cells:
        alone = copy.deepcopy(net)
        weight = alone.get_parameter(cell.layer).detach().view(-1)
        lowest = np.argsort(weight.abs().numpy(), kind="stable")[: int(cell.ratio * weight.numel() + 0.5)]
        weight[torch.from_numpy(lowest.copy())] = 0
        assert (cell.loss, cell.accuracy) == tuple(evaluate(alone).values())
    assert max(table.curve("fc2.weight")[1]) - table.loss < 1e-3 < 0.5 < max(table.curve("fc1.weight")[1])


def test_the_model_is_left_as_it_was_after_an_error(net, candidates, apply, evaluate):
    before, number = state(net), itertools.count()

    def failing(model):
        model.train()(torch.randn(4, 8, dtype=torch.float64))
        if next(number) == 4:
            raise KeyboardInterrupt
        return evaluate(model)

    with pytest.raises(KeyboardInterrupt):
        analyse(net, candidates, apply, failing, GRID)
    assert same_state(state(net), before)
    failing(net)
    assert not same_state(state(net), before)  # such an evaluation does leave traces


def test_an_interrupted_analysis_goes_on_where_it_stopped(net, candidates, apply, evaluate, tmp_path):
    path = tmp_path / "table.json"
    whole, calls = analyse(net, candidates, apply, evaluate, GRID), []

    def counting(model):
        calls.append(model)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return evaluate(model)

    with pytest.raises(KeyboardInterrupt):
        analyse(net, candidates, apply, counting, GRID, path)
    assert len(SensitivityTable.from_json(path.read_text()).cells) == 3
    assert analyse(net, candidates, apply, counting, GRID, path) == whole
    assert len(calls) == 5 + 6
    assert analyse(net, candidates, apply, counting, GRID, path) == whole
    assert len(calls) == 5 + 6
    assert SensitivityTable.from_json(path.read_text()) == whole
    assert [p.name for p in tmp_path.iterdir()] == ["table.json"]


def test_a_file_of_other_scores_or_none_of_ours_is_refused_and_kept(net, candidates, apply, evaluate, tmp_path):
    path = tmp_path / "table.json"
    analyse(net, candidates, apply, evaluate, GRID, path)
    before = path.read_bytes()
    others = Candidates(candidates.units, {n: s * 2 for n, s in candidates.scores.items()})
    with pytest.raises(InputError, match=r"table\.json.*other scores"):
        analyse(net, others, apply, evaluate, GRID, path)
    assert path.read_bytes() == before
    path.write_text("{}")
    with pytest.raises(FormatError, match="not a sensitivity table"):
        analyse(net, candidates, apply, evaluate, GRID, path)
    assert path.read_text() == "{}"


def test_gone_units_stay_gone_and_the_minimum_stays(net, candidates, apply, evaluate):
    gone = {"fc1.weight": torch.arange(64) < 10}
    units = tuple(Units(u.name, u.num, u.members, u.layer, u.kind, minimum=3) for u in candidates.units)
    table = analyse(net, Candidates(units, candidates.scores, gone=gone), apply, evaluate, GRID)
    assert all(bool((asked["fc1.weight"] & gone["fc1.weight"]).sum() == 10) for asked in apply.log)
    assert [int(asked["fc3.weight"].sum()) for asked in apply.log if "fc3.weight" in asked] == [6, 12, 21]
    with apply(gone):
        assert table.loss == evaluate(net)["loss"]


@pytest.mark.parametrize("grid", [(), (0.0, 0.5), (0.5, 1.1)])
def test_grids_out_of_range_are_refused(net, candidates, apply, evaluate, grid):
    with pytest.raises(InputError, match="grid"):
        analyse(net, candidates, apply, evaluate, grid)


@pytest.mark.parametrize("found", [{"loss": 1.0}, {"loss": float("nan"), "accuracy": 1.0}, 0.5])
def test_evaluations_that_cannot_be_used_are_refused(net, candidates, apply, found):
    with pytest.raises(InputError, match="evaluate must return"):
        analyse(net, candidates, apply, lambda model: found, GRID)


def table_of(**losses):
    """A table of curves from loss 1 at ratio 0, all on the grid .25, .5, .75, 1."""
    cells = [Cell(n, (i + 1) / 4, loss, 0.5) for n, curve in losses.items() for i, loss in enumerate(curve)]
    return SensitivityTable(1.0, 0.9, tuple(cells))


def test_tables_as_json():
    table = table_of(a=[1.1, 1.2, 1.3, 1e-3], b=[2, 3, 4, 5.5])
    assert SensitivityTable.from_json(table.to_json()) == table
    assert table.curve("b") == ((0.0, 0.25, 0.5, 0.75, 1.0), (1.0, 2.0, 3.0, 4.0, 5.5))
    raw = json.loads(table.to_json())
    for damaged in ({**raw, "format": "x"}, {**raw, "version": 2}, {**raw, "cells": [{}]}, {**raw, "loss": "x"}, [], 3):
        with pytest.raises(FormatError, match="sensitivity table"):
            SensitivityTable.from_json(json.dumps(damaged))
    with pytest.raises(FormatError, match="damaged"):
        SensitivityTable.from_json(table.to_json()[:-9])


def loss_at(table, name, ratio):
    """The oracle: the monotone, interpolated loss of one layer."""
    ratios, losses = table.curve(name)
    return float(np.interp(ratio, ratios, np.maximum.accumulate(losses)))


@pytest.mark.parametrize("level", [0.05, 0.2, 0.5, 0.7, 0.95])
def test_every_layer_loses_the_same(level):
    table = table_of(a=[1.1, 1.2, 1.4, 3.0], b=[2.0, 3.0, 4.0, 5.5], c=[1.01, 1.02, 1.5, 2.0])
    nums = {"a": 100, "b": 300, "c": 50}
    ratios = Sensitivity(table).ratios_at(level, nums)
    assert sum(ratios[n] * nums[n] for n in nums) == pytest.approx(level * 450, rel=1e-12)
    losses = {n: loss_at(table, n, ratios[n]) for n in nums if ratios[n] < 1}
    assert max(losses.values()) == pytest.approx(min(losses.values()), rel=1e-12)
    assert all(loss_at(table, n, 1.0) <= min(losses.values()) + 1e-12 for n in nums if n not in losses)


def test_flat_and_falling_curves_go_first_and_together():
    table = table_of(flat=[1.0, 1.0, 1.0, 1.0], falling=[0.9, 0.8, 0.7, 1.5], steep=[2.0, 3.0, 4.0, 5.0])
    ratios = Sensitivity(table).ratios_at(0.25, {"flat": 100, "falling": 100, "steep": 100})
    assert ratios == pytest.approx({"flat": 3 / 7, "falling": 9 / 28, "steep": 0.0})
    assert ratios["flat"] / 1.0 == pytest.approx(ratios["falling"] / 0.75)
    assert Sensitivity(table).ratios_at(7 / 12, {"flat": 100, "falling": 100, "steep": 100}) == pytest.approx(
        {"flat": 1.0, "falling": 0.75, "steep": 0.0}
    )


def test_beyond_the_grid_all_go_on_together():
    cells = (Cell("a", 0.5, 2.0, 0.5), Cell("b", 0.8, 3.0, 0.5))
    sensitivity = Sensitivity(SensitivityTable(1.0, 0.9, cells))
    assert sensitivity.ratios_at(0.65, {"a": 10, "b": 10}) == pytest.approx({"a": 0.5, "b": 0.8})
    assert sensitivity.ratios_at(0.825, {"a": 10, "b": 10}) == pytest.approx({"a": 0.75, "b": 0.9})
    assert sensitivity.ratios_at(1.0, {"a": 10, "b": 10}) == {"a": 1.0, "b": 1.0}


def test_the_budget_is_met_and_the_insensitive_layer_gives_most(net, candidates, apply, evaluate):
    table = analyse(net, candidates, apply, evaluate)
    removed, achieved = fit(
        Sensitivity(table),
        candidates,
        Budget(sparsity=0.5),
        lambda removed: {"sparsity": sum(int(m.sum()) for m in removed.values()) / candidates.num_units},
    )
    assert achieved == {"sparsity": 0.5}
    shares = {name: float(mask.double().mean()) for name, mask in removed.items()}
    assert shares["fc2.weight"] > 0.9 > 0.5 > shares["fc1.weight"]


def test_a_layer_without_a_row_is_refused_with_the_nearest():
    candidates = Candidates((Units("fc1.weihgt", 2, ()),), {"fc1.weihgt": torch.ones(2)})
    with pytest.raises(InputError, match=r"no row for 'fc1.weihgt' \(nearest: fc1.weight\)"):
        Sensitivity(table_of(**{"fc1.weight": [1, 2, 3, 4]}))(candidates, 0.5)
