"""Heads of torch's own attention leave it one by one, and the stream feature by feature."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import topiarist
from topiarist.graph import trace
from topiarist.graph.heads import FreeAttention
from topiarist.plan import Plan, Slice
from topiarist.shrink import shrink, verify
from topiarist.testing.invariants import cut_axes, is_caught
from topiarist.testing.zoo import build

MODES = [(True, True), (True, False), (False, False)]


@pytest.mark.filterwarnings("ignore:Support for mismatched")
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("extra", [{}, {"add_bias_kv": True}, {"add_zero_attn": True, "bias": False}, {"kdim": 5}])
def test_it_computes_what_torch_computes(batch_first: bool, extra: dict[str, Any]) -> None:
    torch.manual_seed(0)
    stock = nn.MultiheadAttention(6, 2, batch_first=batch_first, dtype=torch.float64, **extra)
    free = FreeAttention.of(stock)
    q, k, v = (torch.randn(3, 3, n, dtype=torch.float64) for n in (6, extra.get("kdim", 6), 6))
    seen = torch.rand(3, 3) > 0.7
    seen[:, 0] = False  # a row without keys is no number, in both
    masks = [None, seen, torch.randn(3, 3, dtype=torch.float64), torch.randn(6, 3, 3, dtype=torch.float64)]
    for mask, padding, (need, average) in itertools.product(masks, (None, seen), MODES):
        options: dict[str, Any] = {"attn_mask": mask, "need_weights": need, "average_attn_weights": average}
        found, expected = (m(q, k, v, key_padding_mask=padding, **options) for m in (free, stock))
        for a, b in zip(found, expected, strict=True):
            assert (a is None) == (b is None)
            if a is not None:
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    for a, b in zip(free(q[0], k[0], v[0]), stock(q[0], k[0], v[0]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


class Encoder(nn.Module):
    """Torch's encoder layers, with padding: in evaluation mode, their fast path runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        layer = nn.TransformerEncoderLayer(8, 4, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        out: Tensor = self.last(self.encoder(self.first(x), src_key_padding_mask=padding))
        return out


@pytest.fixture
def encoder() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = Encoder()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, torch.randn(2, 5, 6)


def test_heads_go_alone_and_exactly(encoder: tuple[nn.Module, Tensor]) -> None:
    model, inputs = encoder
    axes = trace(model, inputs)
    heads = [a for a in axes.axes if a.is_head]
    assert [(a.size, a.pins, a.inexact, a.step) for a in heads] == [(4, (), (), ())] * 2
    plan = topiarist.plan(model, inputs, structure="head", budget=topiarist.Budget(sparsity=0.5))
    small = shrink(model, plan, inputs)
    assert verify(model, small, plan, inputs).passed
    kinds = {type(m) for m in small.modules() if isinstance(m, nn.MultiheadAttention)}
    assert kinds == {FreeAttention}
    assert list(small.state_dict()) == list(model.state_dict())
    assert {type(m) for m in model.modules() if isinstance(m, nn.MultiheadAttention)} == {nn.MultiheadAttention}


def test_a_shifted_cut_is_caught(encoder: tuple[nn.Module, Tensor]) -> None:
    model, inputs = encoder
    axes = trace(model, inputs)
    head = next(a for a in axes.axes if a.is_head)
    cut = cut_axes(model, axes, {head.name: torch.tensor([True, False, False, True])})
    assert not is_caught(model, cut.plan, inputs)
    wrong = {n: own for n, own in cut.plan.slices.items() if not n.endswith("out_proj.weight")}
    columns = torch.arange(8) < 4
    wrong["encoder.layers.0.self_attn.out_proj.weight"] = (Slice(1, columns),)
    assert is_caught(model, Plan("head", cut.plan.removed, wrong, cut.plan.attributes), inputs)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_padding_and_the_fast_path(encoder: tuple[nn.Module, Tensor]) -> None:
    """Where torch's fast path ran before, what is left gives the same at every token that is there."""
    model, inputs = encoder
    axes = trace(model, inputs)
    gone = {a.name: torch.tensor([False, True, False, False]) for a in axes.axes if a.is_head}
    cut = cut_axes(model, axes, gone)
    with torch.no_grad():
        for name, removed in cut.plan.masks(model).items():
            dict(model.named_parameters())[name].masked_fill_(removed, 0)
        padding = torch.tensor([[False] * 5, [False, False, False, True, True]])
        expected, found = (m.eval()(inputs, padding)[~padding] for m in (model, cut.small))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_fresh_instance_has_the_heads_that_are_left(encoder: tuple[nn.Module, Tensor], tmp_path: Path) -> None:
    model, inputs = encoder
    plan = topiarist.plan(model, inputs, structure="head", budget=topiarist.Budget(sparsity=0.25))
    small = shrink(model, plan).eval()
    topiarist.save(small, tmp_path)
    assert torch.equal(topiarist.load(tmp_path, build=Encoder).eval()(inputs), small(inputs))
    assert trace(small, inputs).free  # and can be cut again


def test_what_fits_stays_torchs_own(encoder: tuple[nn.Module, Tensor], tmp_path: Path) -> None:
    model, inputs = encoder
    plan = topiarist.plan(model, inputs, structure="channel", budget=topiarist.Budget(sparsity=0.0))
    assert {type(m) for m in shrink(model, plan).modules()} == {type(m) for m in model.modules()}
    topiarist.save(model, tmp_path)
    loaded = topiarist.load(tmp_path, build=Encoder)
    assert {type(m) for m in loaded.modules()} == {type(m) for m in model.modules()}


def test_the_root_itself() -> None:
    model = nn.MultiheadAttention(8, 4, batch_first=True)
    x = torch.randn(2, 3, 8)
    plan = topiarist.plan(model, (x, x, x), structure="head", budget=topiarist.Budget(sparsity=0.5))
    assert shrink(model, plan, (x, x, x)).num_heads == 2


def test_the_zoo_is_freed() -> None:
    axes = trace(*build("multihead_attention"))
    assert {a.size: bool(a.pins) for a in axes.axes if a.is_head} == {3: False}
