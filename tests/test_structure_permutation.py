"""Channel permutations: the same function in float64, never less magnitude kept, the best there is on small cases."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import topiarist
from topiarist.errors import InputError
from topiarist.graph import trace
from topiarist.shrink.precision import float64_everywhere, in_float64
from topiarist.structure import permute
from topiarist.structure.permutation import kept, reorder, search
from topiarist.testing.invariants import nothing_left_behind
from topiarist.testing.zoo import build


def best_of_all(matrix, n, m):
    """Every division of the columns into groups of m, one after the other."""

    def divisions(columns):
        if not columns:
            yield []
            return
        for rest in itertools.combinations(columns[1:], m - 1):
            group = (columns[0], *rest)
            for others in divisions([c for c in columns if c not in group]):
                yield [group, *others]

    return max(
        sum(float(matrix[:, list(g)].topk(n, dim=1).values.sum()) for g in groups)
        for groups in divisions(list(range(matrix.shape[1])))
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("n", "m", "num"), [(2, 4, 8), (1, 3, 6), (1, 2, 8), (2, 3, 9)])
def test_the_search_against_every_division(n, m, num, seed):
    matrix = torch.randn(5, num, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).abs()
    order = search(matrix, n, m)
    assert sorted(order.tolist()) == list(range(num))
    before, after, best = float(kept(matrix, n, m)), float(kept(matrix[:, order], n, m)), best_of_all(matrix, n, m)
    assert before <= after <= best * (1 + 1e-12)
    assert num > 2 * m or after >= best * (1 - 1e-12), "of two groups the best there is"


@pytest.mark.parametrize(("n", "m", "num"), [(2, 4, 11), (4, 8, 24), (2, 4, 3)])
def test_it_is_never_worse(n, m, num):
    matrix = torch.randn(7, num, dtype=torch.float64).abs()
    order = search(matrix, n, m)
    assert float(kept(matrix[:, order], n, m)) >= float(kept(matrix, n, m))
    assert torch.equal(order[num - num % m :], torch.arange(num - num % m, num))


def outputs(model, inputs):
    with torch.no_grad(), float64_everywhere():
        return in_float64(model).eval()(inputs.double() if inputs.is_floating_point() else inputs)


@pytest.mark.parametrize(
    "name", ["mlp", "lenet", "vit", "resnet_option_b", "fused_qkv_chunk", "u_net", "depthwise", "tied_embedding"]
)
def test_the_function_stays_and_more_is_kept(name):
    model, inputs = build(name)
    with nothing_left_behind(model, inputs):
        found = permute(model, inputs, "1:2")
    assert found.after >= found.before
    torch.testing.assert_close(outputs(found.model, inputs), outputs(model, inputs), rtol=1e-9, atol=1e-11)
    again = permute(found.model, inputs, "1:2")
    assert again.before == pytest.approx(found.after, rel=1e-12)
    if found.orders:
        assert found.after > found.before
        assert any(not torch.equal(a, b) for a, b in zip(found.model.parameters(), model.parameters(), strict=True))


def test_what_a_plan_keeps_is_what_is_promised():
    model, inputs = build("lenet")
    found = permute(model, inputs, "2:4")
    for net, promised in ((model, found.before), (found.model, found.after)):
        plan = topiarist.plan(net, inputs, structure="2:4")
        masks = plan.masks(net)
        total = sum(float(net.get_parameter(n).detach().double().abs()[~gone].sum()) for n, gone in masks.items())
        assert total == pytest.approx(promised, rel=1e-12)


def test_reordering_one_tensor_too_few_is_caught():
    model, inputs = build("mlp")
    axes = trace(model, inputs)
    moved = permute(model, inputs, "2:4").model
    axis = axes.axes[0]
    reorder(moved, axes, axis, torch.arange(axis.size).flip(0))
    layer = moved.get_submodule(axis.layer)
    layer.bias.data = layer.bias.data.flip(0)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(outputs(moved, inputs), outputs(model, inputs), rtol=1e-6, atol=1e-8)


def test_other_structures_are_refused():
    with pytest.raises(InputError, match="n:m alone"):
        permute(nn.Linear(4, 4), torch.zeros(1, 4), "channel")
