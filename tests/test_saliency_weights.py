"""Criteria from weights alone: L∞, group norms, scales of norms, gates."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import topiarist
from topiarist.allocation import Global
from topiarist.errors import InputError
from topiarist.plan import Units
from topiarist.saliency import Gate, GroupNorm, Magnitude, Scale, Slices, resolve, score
from topiarist.testing.saliency import SaliencyContract, slices


class TestLinf(SaliencyContract):
    @pytest.fixture
    def criterion(self):
        return Magnitude(p=math.inf)


class TestGroupNorm(SaliencyContract):
    @pytest.fixture
    def criterion(self):
        return GroupNorm()


class TestScale(SaliencyContract):
    @pytest.fixture
    def criterion(self):
        return Scale()


class TestGate(SaliencyContract):
    equivariant = False  # gates are told apart by the name of the units

    @pytest.fixture
    def criterion(self):
        return Gate({"layer0.out": torch.linspace(-1, 1, 6)})


@pytest.mark.parametrize("widths", [(1,), (5,), (3, 1, 4)])
def test_linf_is_the_largest_entry(widths):
    there = slices(widths)
    expected = [max(abs(float(v)) for w in there.weights for v in w[j]) for j in range(6)]
    assert score(Magnitude(p=math.inf), there).tolist() == expected
    assert score(Magnitude(p=math.inf), Slices(Units("w", 3, ()), ())).tolist() == [0, 0, 0]
    assert resolve("linf") == Magnitude(p=math.inf)


REDUCTIONS = {"mean": np.mean, "sum": np.sum, "max": np.max, "first": lambda parts: parts[0]}
NORMALISATIONS = {
    "none": lambda x: 1.0, "mean": np.mean, "sum": np.sum, "max": np.max, "l2": np.linalg.norm
}  # fmt: skip


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_group_norm_is_that_of_numpy(p, reduction, normalisation):
    there = slices((3, 1, 4))
    parts = [[np.sum(np.abs(w[j].numpy()) ** p) for w in there.weights] for j in range(6)]
    reduced = np.array([REDUCTIONS[reduction](row) for row in parts])
    expected = reduced / NORMALISATIONS[normalisation](reduced)
    np.testing.assert_allclose(GroupNorm(p, reduction, normalisation)(there), expected, rtol=1e-13)


@given(st.floats(1e-3, 1e3), st.integers(1, 5))
def test_a_group_counts_the_same_at_any_scale_and_with_any_number_of_copies(scale, copies):
    there = slices((3, 2))
    scaled = Slices(there.units, tuple(scale * w for w in there.weights) * copies)
    torch.testing.assert_close(GroupNorm()(scaled), GroupNorm()(there), rtol=1e-12, atol=0)
    assert GroupNorm()(there).mean().item() == pytest.approx(1)
    assert not torch.allclose(Magnitude()(Slices(there.units, there.weights * (copies + 1))), Magnitude()(there))


def test_a_group_of_zeros_and_one_without_weights():
    assert GroupNorm()(Slices(Units("w", 2, ()), (torch.zeros(2, 3),))).tolist() == [0, 0]
    assert GroupNorm()(Slices(Units("w", 2, ()), ())).tolist() == [0, 0]


@pytest.mark.parametrize("wrong", [{"p": 3}, {"reduction": "meen"}, {"normalisation": "median"}])
def test_group_norms_that_are_none(wrong):
    with pytest.raises(InputError):
        GroupNorm(**wrong)


# ------------------------------------------------------------------ scales


class Scaled(nn.Module):
    """A batch norm, a vector of its own and a layer norm; the last hidden axis has no scale."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.own = nn.Conv2d(4, 6, 1), nn.Parameter(torch.tensor([0.5, -3.0, 1.0, 0.25, 2.0, -0.125]))
        self.conv3, self.group = nn.Conv2d(6, 4, 1), nn.GroupNorm(1, 4)
        self.fc1, self.fc2 = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        x = torch.relu(self.bn(self.conv1(x)))
        x = self.conv2(x) * self.own.view(1, -1, 1, 1)
        x = self.group(self.conv3(x)).mean((2, 3))
        return self.fc2(torch.relu(self.fc1(x)))


def test_scales_are_found_by_operator_and_axis():
    torch.manual_seed(0)
    model, x = Scaled(), torch.randn(2, 2, 5, 5)
    with torch.no_grad():
        model.bn.weight.copy_(torch.tensor([0.3, -0.1, 0.2, 0.4]))
    assert set(topiarist.trace(model, x).scales) == {"bn.weight", "own", "group.weight"}
    options = {"structure": "channel", "saliency": "bn-scale", "allocation": Global(normalize="none")}
    plan = topiarist.plan(model, x, keep=["fc1"], budget=topiarist.Budget(sparsity=3 / 14), **options)
    gone = {name: removed.nonzero().flatten().tolist() for name, removed in plan.removed.items()}
    assert gone == {"conv1.weight:0": [1, 2], "conv2.weight:0": [5], "conv3.weight:0": []}
    with pytest.raises(InputError, match=r"nothing scales 'fc1\.weight:0'"):
        topiarist.plan(model, x, budget=topiarist.Budget(sparsity=0.2), **options)


def test_several_scales_of_one_axis_are_averaged():
    torch.manual_seed(0)

    class Stream(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.n1 = nn.Conv1d(2, 3, 1), nn.BatchNorm1d(3)
            self.b, self.n2 = nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3)
            self.fc = nn.Conv1d(3, 2, 1)

        def forward(self, x):
            x = self.n1(self.a(x))
            return self.fc(x + self.n2(self.b(x)))

    model, x = Stream(), torch.randn(2, 2, 4)
    with torch.no_grad():
        model.n1.weight.copy_(torch.tensor([1.0, -2.0, 3.0]))
        model.n2.weight.copy_(torch.tensor([5.0, 0.0, -1.5]))
    planner = topiarist.planning.Planner.of(model, x, topiarist.structure.resolve("channel"), (), None)
    scores = planner.candidates(Scale(), None, None, {}).scores
    assert scores["a.weight:0"].tolist() == [3.0, 1.0, 2.25]


# ------------------------------------------------------------------ gates


def test_gates_are_taken_by_name():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    gates = Gate({"0.weight:0": torch.tensor([0.9, -0.01, 0.5, 0.2])})
    plan = topiarist.plan(
        net, torch.zeros(1, 3), structure="channel", saliency=gates, budget=topiarist.Budget(sparsity=0.25)
    )
    assert plan.removed["0.weight:0"].tolist() == [False, True, False, False]
    with pytest.raises(InputError, match=r"no gates for '0\.weight:0'"):
        topiarist.plan(
            net, torch.zeros(1, 3), structure="channel", saliency=Gate({"0.weigth:0": torch.ones(4)}),
            budget=topiarist.Budget(sparsity=0.25),
        )  # fmt: skip
    with pytest.raises(InputError, match="4 units, got 3 gates"):
        score(Gate({"w": torch.ones(3)}), Slices(Units("w", 4, ()), ()))


def test_gates_are_told_apart_by_their_values():
    one, same, other = (Gate({"w": torch.tensor(v)}) for v in ([1.0, 2.0], [1.0, 2.0], [1.0, 3.0]))
    assert repr(one) == repr(same) != repr(other)
