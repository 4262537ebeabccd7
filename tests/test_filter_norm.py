"""Filter norms against loops, the contract of criteria, and what scaling a unit does to each direction."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from topiarist.errors import InputError
from topiarist.mask import units_in
from topiarist.saliency import FilterNorm, resolve, score
from topiarist.structure.base import parameters_of, slices
from topiarist.testing.saliency import SaliencyContract


class TestFilterNorm(SaliencyContract):
    @pytest.fixture
    def criterion(self):
        return FilterNorm()


def _scores(net: nn.Module, criterion: FilterNorm) -> list[float]:
    _, (units, *_) = units_in(net, torch.zeros(1, 3))
    return score(criterion, slices(units, parameters_of(net))).tolist()


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("direction", ["in", "out", "both"])
def test_it_is_the_norm_of_a_loop(p, direction):
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).double()

    def norm(values: list[float]) -> float:
        return sum(abs(v) ** p for v in values) ** (1 / p)

    incoming = [norm(row) for row in net[0].weight.tolist()]
    outgoing = [norm(column) for column in net[2].weight.mT.tolist()]
    expected = {"in": incoming, "out": outgoing, "both": [a * b for a, b in zip(incoming, outgoing, strict=True)]}
    assert _scores(net, FilterNorm(p, direction)) == pytest.approx(expected[direction], rel=1e-13)


def test_only_the_product_survives_a_scaling_that_changes_nothing():
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    before = {d: _scores(net, FilterNorm(direction=d)) for d in ("in", "both")}
    with torch.no_grad():
        net[0].weight[1] *= 7
        net[2].weight[:, 1] /= 7
    assert _scores(net, FilterNorm(direction="both")) == pytest.approx(before["both"], rel=1e-13)
    assert _scores(net, FilterNorm())[1] == pytest.approx(7 * before["in"][1], rel=1e-13)


def test_words_and_refusals():
    assert (resolve("filter-l1"), resolve("filter-l2")) == (FilterNorm(1), FilterNorm(2))
    with pytest.raises(InputError, match="p = 1 or 2"):
        FilterNorm(p=math.inf)
    with pytest.raises(InputError, match="nearest: out"):
        FilterNorm(direction="outt")
