"""Minitron: dead units last in rank, equal widths, and distillation from the whole model (METHODS F11)."""

from __future__ import annotations

import pytest
import torch

from topiarist import Budget
from topiarist.methods import minitron
from topiarist.models import VisionTransformer
from topiarist.recover import Distil, TrainingRecipe


@pytest.fixture
def net():
    torch.manual_seed(0)
    return VisionTransformer(
        image_size=8, patch_size=2, in_channels=1, dim=16, depth=2, num_heads=4, num_hidden=32
    ).eval()


def test_planted_dead_units_go_first_and_the_function_stays(net):
    x = torch.randn(8, 1, 8, 8)
    with torch.no_grad():
        for block in net.blocks:
            block.fc1.weight[::4], block.fc1.bias[::4] = 0.0, 0.0
    result = minitron(net, x[:1], data=[x], structure="inner", recover="none", budget=Budget(sparsity=0.25))
    for i in (0, 1):
        dead = torch.arange(32) % 4 == 0
        assert torch.equal(result.plan.removed[f"blocks.{i}.fc1.weight:0"].nonzero(), dead.nonzero())
        assert int(result.plan.removed[f"blocks.{i}.attn.qkv.weight:0.1"].sum()) == 1
    only = minitron(
        net, x[:1], data=[x], structure="inner", recover="none", keep=["*.attn*"], budget=Budget(sparsity=0.2)
    )
    assert only.verification.passed


def test_widths_are_those_of_every_block_and_the_stream_shrinks(net):
    x = torch.randn(8, 1, 8, 8)
    result = minitron(net, x[:1], data=[x], recover="none", budget=Budget(params=0.5))
    assert len({(b.fc1.out_features, b.attn.num_heads, b.attn.head_dim) for b in result.model.blocks}) == 1
    assert result.model.norm.normalized_shape[0] < 16
    assert result.model.blocks[0].attn.head_dim == 4
    assert result.plan.achieved["params"] <= 0.5
    assert result.verification.passed


def test_distillation_heals_and_a_model_that_is_whole_has_nothing_to_learn(net):
    x = torch.randn(32, 1, 8, 8)
    heal = Distil(TrainingRecipe(epochs=20, lr=0.05))
    options = {"data": [x], "budget": Budget(params=0.6)}
    cut, healed = (minitron(net, x[:1], recover=r, **options) for r in ("none", heal))
    errors = [float((r.model(x) - net(x)).detach().square().mean()) for r in (cut, healed)]
    assert errors[1] < 0.5 * errors[0]
    whole = minitron(
        net, x[:1], data=[x], recover=Distil(TrainingRecipe(epochs=1, lr=0.05)), budget=Budget(sparsity=0.0)
    )
    assert whole.history[0]["loss"] == pytest.approx(0.0, abs=1e-6)
