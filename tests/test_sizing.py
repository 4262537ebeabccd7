"""Axes that shrink only together: the steps that the sizes in the code leave."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

import topiarist
from topiarist import Budget
from topiarist.graph import trace
from topiarist.graph.axis import AxisGraph
from topiarist.graph.sizes import Attribute, Constraint, Term, evaluate
from topiarist.graph.sizing import Sizing
from topiarist.testing.invariants import check_agreement, cut_axes


class Attention(nn.Module):
    """Attention as it was written for years: the size of a head is computed from the stream."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        weights = (q @ k.transpose(-2, -1) * (c // self.num_heads) ** -0.5).softmax(-1)
        return x + self.proj((weights @ v).transpose(1, 2).reshape(b, n, c))


def net(block: type[nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 12), block(12, 3), block(12, 3), nn.Linear(12, 2))


INPUTS = torch.zeros(2, 4, 5)


def test_heads_and_their_stream_shrink_together():
    axes = trace(net(Attention), INPUTS)
    free = {a.name: a for a in axes.axes if not a.pins}
    heads = [a for a in free.values() if a.is_head]
    assert len(heads) == 2
    step = dict(heads[0].step)
    assert {step[a.name] for a in heads} == {1}
    assert step["0.weight:0"] == 4
    assert all(set(dict(a.step)) == set(step) for a in free.values() if a.step)


def test_a_whole_step_is_the_same_function():
    model = net(Attention)
    axes = trace(model, INPUTS)
    head = next(a for a in axes.axes if a.is_head and not a.pins)
    cut = cut_axes(model, axes, {head.name: torch.tensor([False, True, False])})
    assert {int(gone.sum()) for gone in cut.plan.removed.values()} == {1, 4}
    check_agreement(cut, INPUTS)


@pytest.mark.parametrize("structure", ["channel", "head"])
def test_pruning_takes_whole_steps(structure):
    result = topiarist.prune(
        net(Attention), INPUTS, structure=structure, budget=Budget(sparsity=2 / 3), allocation="uniform",
        schedule="linear", steps=2,
    )  # fmt: skip
    assert result.verification.passed
    sizes = {name: int((~gone).sum()) for name, gone in result.plan.removed.items()}
    assert sizes["0.weight:0"] == 4
    assert result.model(torch.randn(2, 4, 5)).shape == (2, 4, 2)
    assert result.plan.achieved["params"] == sum(p.numel() for p in result.model.parameters()) / sum(
        p.numel() for p in net(Attention).parameters()
    )


def test_the_lowest_of_each_axis_go_together():
    model = net(Attention)
    axes = trace(model, INPUTS)
    head = next(a for a in axes.axes if a.is_head and not a.pins)
    with torch.no_grad():
        model[0].weight[[1, 5, 6, 11]] *= 1e-3
        for other in (model[0].bias, model[1].proj.bias, model[2].proj.bias):
            other[[1, 5, 6, 11]] *= 1e-3
        for layer in (model[1], model[2]):
            layer.qkv.weight[:, [1, 5, 6, 11]] *= 1e-3
            layer.proj.weight[[1, 5, 6, 11]] *= 1e-3
        model[3].weight[:, [1, 5, 6, 11]] *= 1e-3
    plan = topiarist.plan(model, INPUTS, structure="head", budget=Budget(sparsity=1 / 3))
    assert plan.removed["0.weight:0"].nonzero().flatten().tolist() == [1, 5, 6, 11]
    assert int(plan.removed[head.name].sum()) == 1


def test_a_step_is_told():
    text = trace(net(Attention), INPUTS).explain("0.weight:0")
    assert "shrinks by 4 at a time, together with 1 of 1.qkv.weight:0.1, 1 of 2.qkv.weight:0.1" in text


def test_keeping_one_axis_of_a_step_keeps_all():
    with pytest.raises(topiarist.TopiaristError, match="no attention head"):
        topiarist.plan(net(Attention), INPUTS, structure="head", budget=Budget(sparsity=0.3), keep=["0"])


# ---------------------------------------------------------------------------------------------- against all there are


def system(case: str):
    """A small system of sizes: graph, leaves by name, constraints, attributes."""
    graph = AxisGraph()
    leaves = {name: graph.leaf(size) for name, size in {"h": 4, "d": 3, "g": 4, "c": 12}.items()}
    h, d, g, c = leaves.values()
    heads, groups = Attribute("heads"), Attribute("groups")
    product = graph.product([h, d])
    cases = {
        "a product equals a stream": [Constraint(c, product, "")],
        "an attribute names one factor": [Constraint(heads, h, ""), Constraint(Term("//", c, heads), d, "")],
        "one attribute for two axes": [Constraint(heads, h, ""), Constraint(heads, g, "")],
        "two that have nothing to do": [Constraint(heads, h, ""), Constraint(groups, g, "")],
        "a difference": [Constraint(Term("-", c, 9), d, "")],
        "a multiple": [Constraint(Term("*", heads, 3), c, ""), Constraint(heads, g, "")],
        "a value": [Constraint(Term("-", Term("//", c, heads), 3), AxisGraph().leaf(0), "", is_value=True),
                    Constraint(heads, h, "")],
        "a literal": [Constraint(Term("-", c, 12), AxisGraph().leaf(0), "")],
    }  # fmt: skip
    return graph, leaves, cases[case], {"heads": 4, "groups": 4}


CASES = [
    "a product equals a stream", "an attribute names one factor", "one attribute for two axes",
    "two that have nothing to do", "a difference", "a multiple", "a value", "a literal",
]  # fmt: skip


def satisfiable(graph, leaves, constraints, sizes) -> bool:
    """Whether any values of the attributes meet all constraints: all there are are tried."""
    by_leaf = {leaves[name]: size for name, size in sizes.items()}
    for heads, groups in itertools.product(range(1, 13), repeat=2):
        values = {"heads": heads, "groups": groups}
        if all(
            evaluate(c.expression, values, lambda a: graph.measure(a, by_leaf)) == graph.measure(c.axis, by_leaf)
            for c in constraints
        ):
            return True
    return False


@pytest.mark.parametrize("case", CASES)
def test_every_multiple_of_every_step_is_possible(case):
    graph, leaves, constraints, integers = system(case)
    steps, stopped = Sizing(graph, constraints, integers, leaves.values()).steps()
    names = {leaf: name for name, leaf in leaves.items()}
    stepped = {leaf for step in steps for leaf in step}
    moves = [{names[leaf]: num for leaf, num in step.items()} for step in steps]
    moves += [{name: 1} for name, leaf in leaves.items() if leaf not in stepped and leaf not in stopped]
    most = [min((leaves[name].size - 1) // num for name, num in move.items()) for move in moves]
    for times in itertools.product(*(range(m + 1) for m in most)):
        sizes = {name: leaf.size for name, leaf in leaves.items()}
        for move, n in zip(moves, times, strict=True):
            for name, num in move.items():
                sizes[name] -= n * num
        assert satisfiable(graph, leaves, constraints, sizes), (case, moves, sizes)


@pytest.mark.parametrize("case", CASES)
def test_what_is_stopped_cannot_go_alone(case):
    graph, leaves, constraints, integers = system(case)
    steps, stopped = Sizing(graph, constraints, integers, leaves.values()).steps()
    for name, leaf in leaves.items():
        sizes = {other: leaf_.size for other, leaf_ in leaves.items()}
        alone = satisfiable(graph, leaves, constraints, {**sizes, name: leaf.size - 1})
        is_single = leaf not in stopped and not any(leaf in step for step in steps)
        assert alone or not is_single
        if leaf in stopped:
            assert not alone or case == "a product equals a stream"


def test_something_shrinks_in_every_system_but_the_literal():
    for case in CASES:
        graph, leaves, constraints, integers = system(case)
        _, stopped = Sizing(graph, constraints, integers, leaves.values()).steps()
        assert (leaves["c"] in stopped) == (case == "a literal"), case


def test_steps_multiply_out():
    graph, leaves, constraints, integers = system("a product equals a stream")
    steps, _ = Sizing(graph, constraints, integers, leaves.values()).steps()
    (step,) = steps
    assert math.prod(leaves[n].size - step.get(leaves[n], 0) for n in "hd") == 12 - step[leaves["c"]]


# ----------------------------------------------------------------------------------------------------------- rounding


def widths(model: nn.Module) -> list[int]:
    return [m.out_features for m in model if isinstance(m, nn.Linear)]


def plain_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 20), nn.ReLU(), nn.Linear(20, 6), nn.ReLU(),
                         nn.Linear(6, 3))  # fmt: skip


@pytest.mark.parametrize("allocation", ["global", "uniform"])
@pytest.mark.parametrize("params", [0.9, 0.6, 0.4, 0.3])
def test_a_multiple_stays_of_every_axis(allocation, params):
    result = topiarist.prune(
        plain_net(), torch.zeros(1, 5), structure="channel", allocation=allocation, round_to=8,
        budget=Budget(params=params), schedule="linear", steps=2,
    )  # fmt: skip
    first, second, third, last = widths(result.model)
    assert (first % 8, second % 8, third, last) == (0, 0 if second != 20 else 4, 6, 3)
    assert result.plan.achieved["params"] <= params
    assert result.verification.passed


def test_what_is_beyond_a_multiple_goes_first():
    model = plain_net()
    plan = topiarist.plan(model, torch.zeros(1, 5), structure="channel", round_to=8, allocation={"2": 1 / 3})
    norms = model[2].weight.square().sum(1) + model[2].bias.square() + model[4].weight.square().sum(0)
    assert plan.removed["2.weight:0"].nonzero().flatten().tolist() == sorted(norms.argsort()[:4].tolist())


def test_rounding_is_for_channels():
    with pytest.raises(topiarist.TopiaristError, match="does not round"):
        topiarist.plan(plain_net(), torch.zeros(1, 5), round_to=8, budget=Budget(sparsity=0.5))
    with pytest.raises(topiarist.TopiaristError, match="1 or more"):
        topiarist.plan(plain_net(), torch.zeros(1, 5), structure="channel", round_to=0, budget=Budget(sparsity=0.5))
