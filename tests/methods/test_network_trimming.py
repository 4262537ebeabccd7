"""Network Trimming: the golden percentages of zeros, mean + σ by a loop, rounds, and a round that is undone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import topiarist
from topiarist.allocation import Candidates, Outliers
from topiarist.errors import InputError
from topiarist.methods import network_trimming
from topiarist.plan import Units
from topiarist.saliency import APoZ


def test_biases_of_minus_ten_zero_and_ten_are_zero_always_half_the_time_and_never():
    """Hu et al.'s measure on symmetric inputs; without the unit that is always zero the outputs are the same bits."""
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        net[0].bias.copy_(torch.tensor([-10.0, 0.0, 10.0]))
    half = torch.rand(500, 3) - 0.5
    x = torch.cat([half, -half])
    seen = {}

    def spy(slices):
        seen["apoz"] = 1 - APoZ()(slices)
        return APoZ()(slices)

    spy.needs = APoZ().needs
    topiarist.plan(net, x[:1], structure="channel", saliency=spy, data=[x], budget=topiarist.Budget(sparsity=0.34))
    assert seen["apoz"].tolist() == pytest.approx([1.0, 0.5, 0.0], abs=0.002)  # an input on the boundary
    result = network_trimming(
        net, x[:1], data=[x], judge=lambda _: {"accuracy": 1.0}, rounds=1, recover="none", deviations=1.0
    )
    assert result.plan.removed["0.weight:0"].tolist() == [True, False, False]
    assert torch.equal(result.model(x), net(x))


def test_outliers_are_those_of_a_loop_and_again_among_those_left():
    scores = [5.0, 1.0, 4.0, 4.5, 0.0, 4.2, 3.0]
    gone: list[int] = []
    for _ in range(3):
        left = [s for i, s in enumerate(scores) if i not in gone]
        mean = sum(left) / len(left)
        sigma = (sum((s - mean) ** 2 for s in left) / len(left)) ** 0.5
        mask = torch.tensor([i in gone for i in range(7)])
        candidates = Candidates((Units("a", 7, ()),), {"a": torch.tensor(scores)}, gone={"a": mask})
        gone += [i for i, s in enumerate(scores) if i not in gone and s < mean - sigma]
        assert Outliers()(candidates, 1.0)["a"].nonzero().flatten().tolist() == sorted(gone)
    assert gone == [1, 4, 6, 2]
    level = Candidates((Units("a", 7, ()),), {"a": torch.tensor(scores)})
    assert int(Outliers()(level, 0.5)["a"].sum()) == 1
    assert int(Outliers()(Candidates((Units("a", 5, ()),), {"a": torch.full((5,), 0.1)}), 1.0)["a"].sum()) == 0
    with pytest.raises(InputError, match="deviations"):
        Outliers(-1.0)


def test_rounds_go_on_and_a_round_that_costs_too_much_is_undone(points):
    wide = network_trimming(points.net, points.x, rounds=3, drop=1.0, **points.told)
    assert [row["step"] for row in wide.curve] == [1, 2, 3]
    amounts = [row["sparsity"] for row in wide.curve]
    assert amounts == sorted(amounts)
    assert amounts[-1] > 0
    accuracies = iter([1.0, 0.99, 0.5])  # the model itself, the first round, the second
    told = {**points.told, "judge": lambda _: {"accuracy": next(accuracies)}}
    stopped = network_trimming(points.net, points.x, rounds=3, drop=0.02, **told)
    assert len(stopped.curve) == 1
    assert stopped.plan.achieved["sparsity"] == amounts[0]
    assert stopped.verification.passed


def test_what_is_refused_at_once_leaves_the_model_whole(points):
    accuracies = iter([1.0, 0.0])
    told = {**points.told, "judge": lambda _: {"accuracy": next(accuracies)}}
    result = network_trimming(points.net, points.x, **told)
    assert result.plan.num_removed == 0
    torch.testing.assert_close(result.model(points.inputs), points.net(points.inputs), rtol=0, atol=0)


def test_with_a_budget_the_rounds_are_steps_towards_it(points):
    half = topiarist.Budget(sparsity=0.5)
    result = network_trimming(points.net, points.x, rounds=2, drop=1.0, budget=half, **points.told)
    assert [row["sparsity"] for row in result.curve] == [0.25, 0.5]
    with pytest.raises(InputError, match="goes by accuracy"):
        network_trimming(points.net, points.x, data=points.data)
