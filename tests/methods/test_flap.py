"""FLAP: constants go first and at no loss, heads and channels in one ranking, the stream stays (METHODS F9)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from topiarist import Budget
from topiarist.methods import flap
from topiarist.models import VisionTransformer
from topiarist.structure import Width, resolve


@pytest.fixture
def transformer():
    torch.manual_seed(2)
    return VisionTransformer(
        image_size=8, patch_size=2, in_channels=1, dim=16, depth=2, num_heads=4, num_hidden=24
    ).eval()


def test_constants_go_first_and_the_output_stays(mlp):
    """Three hidden channels that never change: variance 0; their means move into the bias, exactly."""
    net, x = mlp(6, 10, 4, bias=True), torch.randn(50, 6, dtype=torch.float64)
    with torch.no_grad():
        net[0].weight[[1, 4, 7]] = 0.0
        net[0].bias[[1, 4, 7]] = torch.tensor([3.0, 0.5, 9.0], dtype=torch.float64)
    options = {"data": [x[:20], x[20:]], "budget": Budget(sparsity=0.3)}
    result = flap(net, x[:1], **options)
    assert result.plan.removed["0.weight:0"].nonzero().flatten().tolist() == [1, 4, 7]
    torch.testing.assert_close(result.model(x), net(x), rtol=1e-12, atol=1e-12)
    lost = flap(net, x[:1], recover="none", **options).model  # the sabotaged twin: no compensation
    assert float((lost(x) - net(x)).detach().abs().max()) > 0.1


def by_hand(net, x):
    """Var[x_j] ‖w_j‖² of what proj and fc2 are multiplied by, standardised within each; heads are means: NumPy."""
    seen, found = {}, {}
    handles = []
    for i, block in enumerate(net.blocks):
        for name in ("attn.proj", "fc2"):
            module = block.get_submodule(name)
            handles.append(module.register_forward_hook(
                lambda m, args, out, key=(i, name): seen.__setitem__(key, (m, args[0].detach().double().numpy()))
            ))  # fmt: skip
    with torch.no_grad():
        net(x)
    for handle in handles:
        handle.remove()
    for (i, name), (module, inputs) in seen.items():
        variance = inputs.reshape(-1, inputs.shape[-1]).var(0)
        metric = variance * (module.weight.detach().double().numpy() ** 2).sum(0)
        metric = (metric - metric.mean()) / metric.std()
        key = f"blocks.{i}.attn.qkv.weight:0.1" if name == "attn.proj" else f"blocks.{i}.fc1.weight:0"
        found[key] = metric.reshape(4, 4).mean(1) if name == "attn.proj" else metric
    return found


def test_heads_and_channels_are_cut_at_one_level_where_the_budget_is_met(transformer):
    x = torch.randn(16, 1, 8, 8)
    result = flap(transformer, x[:1], data=[x], recover="none", budget=Budget(params=0.75))
    expected = by_hand(transformer, x)
    assert set(result.plan.removed) == set(expected)
    gone = np.concatenate([expected[n][g.numpy()] for n, g in result.plan.removed.items()])
    left = np.concatenate([expected[n][~g.numpy()] for n, g in result.plan.removed.items()])
    assert (left < gone.max() - 1e-9).sum() < len(expected)  # a budget is met within the last unit of each set
    assert np.sort(np.concatenate([gone, left]))[len(gone) - 1] == pytest.approx(gone.max(), abs=0.05)
    per_head = (4 * 16 * 4 + 3 * 4) / sum(p.numel() for p in transformer.parameters())
    assert 0.75 - per_head <= result.plan.achieved["params"] <= 0.75
    assert result.verification.passed
    assert result.model.norm.normalized_shape == (16,)
    sabotaged = flap(transformer, x[:1], data=[x], metric="ifv", recover="none", budget=Budget(params=0.75)).plan
    other = np.concatenate([expected[n][g.numpy()] for n, g in sabotaged.removed.items()])
    kept = np.concatenate([expected[n][~g.numpy()] for n, g in sabotaged.removed.items()])
    assert (kept < other.max()).sum() >= len(expected)


def test_compensation_comes_closer(transformer):
    x = torch.randn(64, 1, 8, 8)
    options = {"data": [x], "budget": Budget(params=0.75)}
    errors = [
        float((flap(transformer, x[:1], recover=r, **options).model(x) - transformer(x)).detach().square().mean())
        for r in ("none", "compensate")
    ]
    assert errors[1] < 0.7 * errors[0]


def test_what_lies_inside_and_the_stream(transformer):
    """The structures: heads and hidden channels; with the stream; never the features inside of heads."""
    from topiarist.graph import trace

    axes = trace(transformer, torch.zeros(1, 1, 8, 8))
    inner, width = resolve("inner"), resolve("width")
    assert (inner, width) == (Width(stream=False), Width())
    names = [units.name for units in inner.units(axes)]
    assert names == [f"blocks.{i}.{n}" for i in (0, 1) for n in ("attn.qkv.weight:0.1", "fc1.weight:0")]
    assert [units.name for units in width.units(axes)] == ["patch_embed.weight:0", *names]
    assert (inner.word, width.word) == ("inner", "width")
    convolutions = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    axes = trace(convolutions, torch.zeros(1, 1, 8, 8))
    assert [u.name for u in inner.units(axes)] == [u.name for u in resolve("channel").units(axes)]
