"""Sizes kept anywhere Python keeps a number: followed when axes shrink, in copies of their own where values part."""

from __future__ import annotations

import copy
from collections import namedtuple
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import topiarist
from topiarist import Budget

Sizes = namedtuple("Sizes", "heads dim")


@dataclass
class Part:
    heads: int = 4
    dim: int = 3


@dataclass(frozen=True, slots=True)
class Frozen:
    heads: int = 4
    dim: int = 3


@dataclass
class Whole:
    text: Part = field(default_factory=Part)
    vision: Part = field(default_factory=Part)


class Plain:
    """As configs of libraries are: a class of its own, with a part inside and more than sizes."""

    def __init__(self) -> None:
        self.text_config = Part()
        self.name, self.dropout = "plain", 0.1

    def to_dict(self) -> dict[str, object]:
        return {"text_config": self.text_config.__dict__}


HOLDERS = {
    "list": (lambda: [4, 3], lambda h: (h[0], h[1])),
    "tuple": (lambda: (4, 3), lambda h: (h[0], h[1])),
    "named tuple": (lambda: Sizes(4, 3), lambda h: (h.heads, h.dim)),
    "dict": (lambda: {"heads": 4, "dim": 3}, lambda h: (h["heads"], h["dim"])),
    "dataclass": (Part, lambda h: (h.heads, h.dim)),
    "frozen dataclass": (Frozen, lambda h: (h.heads, h.dim)),
    "namespace": (lambda: SimpleNamespace(heads=4, dim=3), lambda h: (h.heads, h.dim)),
    "nested dataclass": (Whole, lambda h: (h.text.heads, h.text.dim)),
    "nested config": (Plain, lambda h: (h.text_config.heads, h.text_config.dim)),
    "list in a dict": (lambda: {"sizes": [(4, 3)]}, lambda h: h["sizes"][0]),
}


class Block(nn.Module):
    def __init__(self, holder, read) -> None:
        super().__init__()
        self.holder, self.read = holder, read
        heads, dim = read(holder)
        self.qkv, self.proj = nn.Linear(8, 3 * heads * dim), nn.Linear(heads * dim, 8)

    def forward(self, x: Tensor) -> Tensor:
        (b, n, _), (heads, dim) = x.shape, self.read(self.holder)
        q, k, v = self.qkv(x).view(b, n, 3, heads, dim).permute(2, 0, 3, 1, 4).unbind(0)
        y = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return x + self.proj(y.transpose(1, 2).reshape(b, n, heads * dim))


INPUTS = torch.zeros(2, 3, 8)


def make(kind: str) -> tuple[nn.Sequential, object]:
    torch.manual_seed(0)
    build, read = HOLDERS[kind]
    holder = build()
    return nn.Sequential(*(Block(holder, read) for _ in range(3))).eval(), holder


def told(model: nn.Sequential) -> list[tuple[int, int]]:
    return [tuple(block.read(block.holder)) for block in model]


@pytest.mark.parametrize("kind", HOLDERS)
def test_every_layer_gets_numbers_of_its_own(kind):
    model, holder = make(kind)
    before = copy.deepcopy(holder)
    result = topiarist.prune(
        model, INPUTS, structure="head", allocation={"0.*": 0.5, "1.*": 0.25}
    )  # fmt: skip
    assert result.verification.passed
    assert told(result.model) == [(2, 3), (3, 3), (4, 3)]
    assert told(model) == [(4, 3)] * 3
    assert all(block.holder is holder for block in model)
    assert vars_of(holder) == vars_of(before)
    assert type(result.model[0].holder) is type(holder)


@pytest.mark.parametrize("kind", HOLDERS)
def test_layers_that_ask_for_the_same_go_on_sharing(kind):
    model, _ = make(kind)
    small = topiarist.prune(model, INPUTS, structure="head", allocation={"[01].*": 0.5}).model
    assert told(small) == [(2, 3), (2, 3), (4, 3)]
    assert small[0].holder is small[1].holder
    assert small[0].holder is not small[2].holder


@pytest.mark.parametrize("kind", HOLDERS)
def test_they_come_back_from_a_file(kind, tmp_path):
    model, _ = make(kind)
    small = topiarist.prune(model, INPUTS, structure="head", budget=Budget(sparsity=0.5)).model
    again = topiarist.load(topiarist.save(small, tmp_path / "out"), build=lambda: make(kind)[0])
    assert told(again) == told(small)
    x = torch.randn(2, 3, 8)
    assert torch.equal(again.eval()(x), small.eval()(x))


def test_a_number_that_does_not_follow_would_fail():
    model, _ = make("list")
    plan = topiarist.plan(model, INPUTS, structure="head", allocation={"0.*": 0.5})
    assert plan.attributes == {"0.holder[0]": 2}
    stale = topiarist.Plan(plan.structure, plan.removed, plan.slices)  # the sabotaged twin: nobody sets the number
    with pytest.raises(topiarist.TopiaristError, match="does not run"):
        topiarist.shrink(model, stale, INPUTS)


def vars_of(holder: object) -> object:
    return {k: vars_of(v) for k, v in vars(holder).items()} if hasattr(holder, "__dict__") else holder
