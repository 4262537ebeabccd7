"""Which dimension of a weight its products sum over: told apart even where both dimensions are one axis."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import topiarist
from topiarist.stats import Watch


class Mixed(nn.Module):
    """Products of every kind; ``mix`` has the residual stream on both sides."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.grouped = nn.Conv2d(8, 8, 3, groups=2)
        self.up = nn.ConvTranspose2d(8, 6, 2)
        self.mix = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.right = nn.Parameter(torch.randn(6, 5))
        self.left = nn.Parameter(torch.randn(3, 5))
        self.stack = nn.Parameter(torch.randn(2, 3, 3))

    def forward(self, x):
        x = self.up(self.grouped(self.depthwise(self.conv(x)))).mean((2, 3))[:, None]
        x = self.norm(x + self.mix(x))
        x = x + self.attention(x, x, x)[0]
        y = torch.einsum("bti,io->bto", x, self.right)[:, 0] @ self.left.T
        return torch.bmm(torch.stack([y, y]), self.stack)


@pytest.fixture(scope="module")
def mixed():
    return Mixed(), torch.randn(2, 3, 9, 9)


def test_sides_are_those_of_products_as_they_run(mixed):
    model, x = mixed
    axes, found = topiarist.trace(model, x), {}
    with torch.no_grad(), Watch(model, lambda use: found.__setitem__(use.weight, use.in_dim)):
        model(x)
    assert len(found) == 10
    for name, info in axes.tensors.items():
        expected = ["in" if d == found[name] else "out" for d in range(len(info.axes))] if name in found else None
        assert [axes.side(name, d) for d in range(len(info.axes))] == (expected or [""] * len(info.axes)), name


def test_members_carry_their_side(mixed):
    axes = topiarist.trace(*mixed)
    stream = next(a for a in axes.axes if sum(m.tensor == "mix.weight" for m in a.members) == 2)
    assert {(m.tensor, m.dim): m.side for m in stream.members if "mix" in m.tensor} == {
        ("mix.weight", 0): "out",
        ("mix.weight", 1): "in",
        ("mix.bias", 0): "",
    }


def test_recurrent_layers_sum_over_their_inputs():
    axes = topiarist.trace(nn.LSTM(4, 6, proj_size=3, batch_first=True), torch.randn(2, 5, 4))
    for name in ("weight_ih_l0", "weight_hh_l0", "weight_hr_l0"):
        assert (axes.side(name, 0), axes.side(name, 1)) == ("out", "in")
    assert axes.side("bias_ih_l0", 0) == ""
