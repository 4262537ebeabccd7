"""Pruning from Scratch: only gates move, to the mean that is asked for; the budget is met; CLI and Python agree."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from typer.testing import CliRunner

import topiarist
from topiarist import Budget
from topiarist.cli.app import app
from topiarist.errors import BudgetError, InputError
from topiarist.mask.gates import Gates, ScalarGate
from topiarist.measure import macs
from topiarist.methods import pruning_from_scratch
from topiarist.methods.pruning_from_scratch import learn_gates
from topiarist.recover import TrainingRecipe


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Flatten(), nn.Linear(64, 3),
    )  # fmt: skip


@pytest.fixture
def data():
    torch.manual_seed(1)
    return [(torch.randn(8, 1, 6, 6), torch.arange(8) % 3) for _ in range(20)]


def learnt(net, data, **options):
    gates = Gates(net, data[0][0], ScalarGate)
    options = {"ratio": 0.5, "num_epochs": 8, **options}
    return gates, learn_gates(net, gates, data, F.cross_entropy, **options)


def test_only_gates_change(net, data):
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    gates, rows = learnt(net, data)
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert not any(module._forward_pre_hooks for module in net.modules())
    values = torch.cat([gates[u.name].deterministic() for u in gates.units])
    assert float(values.min()) >= 0
    assert float(values.max()) <= 1
    assert len({float(v) for v in values}) > 2
    assert len(rows) == 160


def test_weights_that_learn_are_noticed(net, data):
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for p in net.parameters():
        p.data.add_(0)
    gates = Gates(net, data[0][0], ScalarGate)
    optimizer = torch.optim.Adam([*gates.parameters(), *net.parameters()])
    gates.attach()
    F.cross_entropy(net(data[0][0]), data[0][1]).backward()
    optimizer.step()
    gates.detach()
    assert not all(torch.equal(p, before[name]) for name, p in net.named_parameters())


@pytest.mark.parametrize("ratio", [0.3, 0.5])
def test_the_mean_gate_is_what_is_asked_for(net, data, ratio):
    gates, _ = learnt(net, data, ratio=ratio, strength=5.0, num_epochs=10)
    values = torch.cat([gates[u.name].deterministic() for u in gates.units])
    assert abs(float(values.mean()) - ratio) < 0.05
    free, _ = learnt(net, data, ratio=ratio, strength=0.0, num_epochs=10)
    values = torch.cat([free[u.name].deterministic() for u in free.units])
    assert abs(float(values.mean()) - ratio) > 0.05  # without the term nothing brings it there


def test_the_penalty_is_the_formula(net, data):
    """λ (Σ |g| / n − r)² over all gates of all layers: its gradient is 2 λ (mean − r) sign(g) / n."""
    gates = Gates(net, data[0][0], ScalarGate)
    for place, parameter in enumerate(gates.parameters()):
        nn.init.constant_(parameter, 0.25 + 0.5 * place)
    mean = (12 * 0.25 + 16 * 0.75) / 28
    (0.5 * (gates.density() - 0.2).square()).backward()
    for parameter in gates.parameters():
        torch.testing.assert_close(parameter.grad, torch.full_like(parameter, 2 * 0.5 * (mean - 0.2) / 28))


def test_the_threshold_is_the_first_that_meets_the_budget(net, data):
    """The gates of those that go are below the gates of those that stay, and with one unit more it is too much."""
    options = {"data": data, "loss": F.cross_entropy, "gate_epochs": 3, "ratio": 0.5}
    result = pruning_from_scratch(net, data[0][0], budget=Budget(macs=0.5), **options)
    work = copy.deepcopy(net)
    topiarist.recover.reinitialize(work, 0)
    gates, _ = learnt(work, data, num_epochs=3)
    gone = torch.cat([result.plan.removed[u.name] for u in gates.units])
    values = torch.cat([gates[u.name].deterministic() for u in gates.units])
    assert float(values[gone].max()) <= float(values[~gone].min())
    share = macs(result.model, data[0][0]).total / macs(net, data[0][0]).total
    assert share == pytest.approx(result.plan.achieved["macs"], rel=1e-12)
    widths = [result.model[0].out_channels, result.model[3].out_channels]
    last = int(values.masked_fill(~gone, -1).argmax())  # the last to go, and with it the budget would be missed
    widths[last >= 12] += 1
    with_one_more = (widths[0] * 9 * 16 + widths[0] * widths[1] * 9 * 4 + widths[1] * 4 * 3) * 8
    assert share <= 0.5 < with_one_more / macs(net, data[0][0]).total


def test_the_narrow_network_is_trained_from_fresh_weights(net, data):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    options = {"data": data, "loss": F.cross_entropy, "budget": Budget(macs=0.5), "gate_epochs": 1}
    fresh = pruning_from_scratch(net, data[0][0], **options)
    again = pruning_from_scratch(net, data[0][0], **options)
    assert all(torch.equal(a, b) for a, b in zip(fresh.model.parameters(), again.model.parameters(), strict=True))
    rows: list[dict[str, float]] = []
    trained = pruning_from_scratch(
        net, data[0][0], recipe=TrainingRecipe(epochs=1, lr=0.1), equal="compute", on_step=rows.append,
        evaluate=lambda m: {"loss": float(F.cross_entropy(m(data[0][0]), data[0][1]).detach())}, **options,
    )  # fmt: skip
    assert trained.plan == fresh.plan
    assert "loss" in trained.curve[0]
    assert rows[-1]["sparsity"] == trained.plan.achieved["sparsity"]
    longer = int(1 / trained.plan.achieved["macs"])
    assert len(trained.history) == 20 + 20 * longer
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training


def test_what_cannot_be_is_refused(net, data):
    options = {"data": data, "loss": F.cross_entropy, "gate_epochs": 0}
    with pytest.raises(BudgetError, match="nearest is macs"):
        pruning_from_scratch(net, data[0][0], budget=Budget(macs=0.0001), **options)
    with pytest.raises(InputError, match="mean gate"):
        pruning_from_scratch(net, data[0][0], budget=Budget(macs=0.5), ratio=0, **options)
    with pytest.raises(InputError, match="'compute'"):
        pruning_from_scratch(net, data[0][0], budget=Budget(macs=0.5), equal="time", **options)


def test_it_runs_from_the_command_line(tmp_path):
    arguments = ["prune", "--arch", "my", "--epochs", "0.2", "--threads", "1", "--method", "pruning-from-scratch"]
    told = ["--macs", "0.5", "--options", "gate_epochs=0.2", "--out", str(tmp_path / "run")]
    ran = CliRunner().invoke(app, arguments + told)
    assert ran.exit_code == 0, ran.output
