"""Block drop: influence on real blocks, the identity first, exactly (METHODS F10)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from topiarist import Budget
from topiarist.methods import block_drop
from topiarist.models import VisionTransformer, build


@pytest.fixture
def deep():
    torch.manual_seed(4)
    net = VisionTransformer(image_size=8, patch_size=2, in_channels=1, dim=16, depth=5, num_heads=2, num_hidden=16)
    with torch.no_grad():
        for part in (net.blocks[2].attn.proj, net.blocks[2].fc2):
            part.weight.zero_(), part.bias.zero_()
    return net.eval()


def test_a_block_without_update_goes_first_and_logits_stay(deep):
    x = torch.randn(6, 1, 8, 8)
    result = block_drop(deep, x[:1], data=[x], budget=Budget(sparsity=0.2))
    assert [*result.plan.bypassed] == ["blocks.2"]
    assert result.verification.passed
    torch.testing.assert_close(result.model(x), deep(x), rtol=0, atol=1e-6)
    sabotaged = block_drop(deep, x[:1], data=[x], saliency="l2", budget=Budget(sparsity=0.2))
    assert [*sabotaged.plan.bypassed] == ["blocks.2"]  # its norm is the lowest as well …
    with torch.no_grad():
        deep.blocks[2].norm1.weight.mul_(100)  # … but a norm that nothing reads is no influence
    assert [*block_drop(deep, x[:1], data=[x], budget=Budget(sparsity=0.2)).plan.bypassed] == ["blocks.2"]
    assert [*block_drop(deep, x[:1], data=[x], saliency="l2", budget=Budget(sparsity=0.2)).plan.bypassed] != [
        "blocks.2"
    ]


def test_the_blocks_of_lowest_influence_go_at_once(deep):
    """1 − mean cosine over tokens, by NumPy, on the whole model; tokens may be in any order."""
    x, seen = torch.randn(6, 1, 8, 8), {}
    handles = [
        block.register_forward_hook(lambda m, args, out, i=i: seen.__setitem__(i, (args[0].detach(), out.detach())))
        for i, block in enumerate(deep.blocks)
    ]
    deep(x)
    for handle in handles:
        handle.remove()
    influence = []
    for i in range(5):
        a, b = (t.double().numpy().reshape(-1, 16) for t in seen[i])
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        influence.append(1 - cosine.mean())
    result = block_drop(deep, x[:1], data=[x[:2], x[2:]], budget=Budget(sparsity=0.6))
    expected = sorted(f"blocks.{i}" for i in np.argsort(influence)[:3])
    assert sorted(result.plan.bypassed) == expected
    assert min(influence) >= -1e-12


def test_convolutional_blocks_of_a_network_and_a_budget_of_its_cost():
    net, x = build("resnet20").eval(), torch.randn(2, 3, 16, 16)
    result = block_drop(net, x[:1], data=[x], budget=Budget(macs=0.8))
    assert 0.6 < result.plan.achieved["macs"] <= 0.8
    assert result.verification.error == 0.0
