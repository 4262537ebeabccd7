"""Who makes an axis and who reads it: told apart where both are one axis, found by their effect on the function."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn

from topiarist import trace
from topiarist.testing.zoo import build


class SquareResidual(nn.Module):
    """A layer from the stream to the stream: both of its dimensions are one axis."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(x + torch.relu(self.block(x)))


def places(members):
    return [(m.tensor, m.dim) for m in members]


def test_both_dimensions_of_a_square_layer_are_told_apart():
    axes = trace(SquareResidual(), torch.randn(2, 5))
    assert places(axes.makers("stem.weight:0")) == [("stem.weight", 0), ("block.weight", 0)]
    assert places(axes.readers("stem.weight:0")) == [("block.weight", 1), ("head.weight", 1)]


@pytest.mark.parametrize(("name", "axis", "makers", "readers"), [
    ("depthwise", "0.weight:0", [("0.weight", 0)], [("5.weight", 1)]),  # the depthwise weight does neither
    ("transposed_groups", "2.weight:1", [("2.weight", 1)], [("4.weight", 1)]),
    ("einsum_attention", "v:2", [("v", 2)], [("out", 1)]),
    ("einsum_attention", "q:2", [("q", 2), ("k", 2)], []),  # summed over by activations
])  # fmt: skip
def test_kinds_of_layers(name, axis, makers, readers):
    axes = trace(*build(name))
    assert places(axes.makers(axis)) == makers
    assert places(axes.readers(axis)) == readers


@pytest.mark.parametrize(
    "name", ["mlp", "vit", "resnet_option_b", "multihead_attention", "recurrent_layers", "depthwise"]
)
def test_without_its_readers_an_axis_has_no_effect(name):
    """Zero where an axis is read, and nothing depends on what makes it any more; with the last reader left, it does."""
    model, inputs = build(name)
    model.double().eval()
    inputs = inputs.double()
    axes = trace(model, inputs)
    for axis in (a for a in axes.axes if not a.pins and not a.inexact and not a.step):
        readers, makers = axes.readers(axis.name), axes.makers(axis.name)
        assert makers
        if not readers:
            assert re.search(r"qkv|in_proj", axis.name), "only queries times keys are summed over without a weight"
            continue
        assert moved(model, inputs, readers, makers) == 0
        assert moved(model, inputs, readers[:-1], makers) > 0


def moved(model, inputs, readers, makers):
    """By how much the output moves with what makes the axis, where these readers of it are zero."""
    work = copy.deepcopy(model)
    weights = dict(work.named_parameters())
    with torch.no_grad():
        for m in readers:
            weights[m.tensor].index_fill_(m.dim, (m.unit >= 0).nonzero().flatten(), 0)
        before = work(inputs).clone()
        for m in makers:
            where = (m.unit >= 0).nonzero().flatten()
            more = torch.ones_like(weights[m.tensor].index_select(m.dim, where))
            weights[m.tensor].index_add_(m.dim, where, more)
        return float((work(inputs) - before).abs().max())
