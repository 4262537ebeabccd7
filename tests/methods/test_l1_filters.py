"""L1 filters: the published counts of parameters and MACs, the choice by a loop, greedy against independent."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import topiarist
from topiarist.errors import InputError
from topiarist.methods import l1_filters
from topiarist.methods.l1_filters import CONFIGS
from topiarist.models import ResNet, vgg16_bn

GOLDEN = {  # parameters and MACs of He et al. 2016 with shortcut A, and of Li et al. 2017
    ("resnet56-a", 56): (773_336, 112_435_840),
    ("resnet56-b", 56): (735_712, 90_907_264),
    ("resnet110-a", 110): (1_688_522, 212_779_648),
    ("resnet110-b", 110): (1_168_424, 155_124_352),
}


def counted(model: nn.Module) -> tuple[int, int]:
    """Parameters and multiply–accumulates of convolutions and linear layers, by hooks and the textbook's formula."""
    found = []

    def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        found.append(module.weight.numel() * (out[0, 0].numel() if out.ndim == 4 else 1))

    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    with torch.no_grad():
        model.eval()(torch.zeros(1, 3, 32, 32))
    for handle in handles:
        handle.remove()
    return sum(p.numel() for p in model.parameters()), sum(found)


def planned(net: nn.Module, config: str) -> nn.Module:
    x = torch.zeros(1, 3, 32, 32)
    made = topiarist.plan(net, x, structure="channel", saliency="filter-l1", allocation=CONFIGS[config])
    return topiarist.shrink(net, made, x)


@pytest.mark.parametrize(("config", "depth"), [key for key in GOLDEN if key[1] == 56])
def test_the_smaller_networks_have_the_published_size(config, depth):
    assert counted(planned(ResNet(depth), config)) == GOLDEN[config, depth]


@pytest.mark.parametrize(("config", "depth"), [key for key in GOLDEN if key[1] == 110])
def test_the_fractions_of_the_deepest_give_the_published_size(config, depth):
    """By the table of fractions alone: 3 · 3 · c of the weights that make and of those that read each lost filter."""
    params, macs = 1_727_962, 252_887_680
    for name, ratio in CONFIGS[config].items():
        stage, block = int(name[5]), int(name.split(".")[1])
        width, side = 16 * 2 ** (stage - 1), 32 // 2 ** (stage - 1)
        entering = width // 2 if block == 0 and stage > 1 else width
        gone = round(ratio * width)
        params -= gone * (9 * entering + 2 + 9 * width)
        macs -= gone * side * side * 9 * (entering + width)
    assert (params, macs) == GOLDEN[config, depth]


def test_vgg_16_a_has_the_published_size():
    small = planned(vgg16_bn(), "vgg16-a")
    assert counted(small)[0] == 5_261_866
    assert [m.out_channels for m in small.modules() if isinstance(m, nn.Conv2d)] == [32, 64, 128, 128] + [256] * 9


def test_filters_go_by_their_own_weights(images):
    """A loop over the filters; norms and the next layer, which `saliency="l1"` counts, would choose others."""
    with torch.no_grad():
        images.net[1].weight.copy_(-100 * torch.arange(8.0))
    sums = [float(sum(abs(v) for v in f.flatten())) for f in images.net[0].weight.detach()]
    expected = sorted(sorted(range(8), key=sums.__getitem__)[:4])
    plan = l1_filters(images.net, images.x, ratios={"0": 0.5}, recover="none").plan
    assert plan.removed["0.weight:0"].nonzero().flatten().tolist() == expected
    sabotaged = topiarist.prune(images.net, images.x, structure="channel", saliency="l1", allocation={"0": 0.5}).plan
    assert sabotaged.removed["0.weight:0"].nonzero().flatten().tolist() != expected


def test_greedy_does_not_count_what_is_gone():
    """Filter 0 of the second layer lives off input channel 0 alone, which goes first; filter 1 off channel 1."""
    net = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Conv2d(2, 1, 1))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([1.0, 2.0]).view(2, 1, 1, 1))
        net[2].weight.copy_(torch.tensor([[5.0, 0.0], [0.0, 3.0]]).view(2, 2, 1, 1))
    gone = {
        greedy: l1_filters(net, torch.zeros(1, 1, 4, 4), ratios={"*": 0.5}, greedy=greedy, recover="none").plan.removed
        for greedy in (False, True)
    }
    assert gone[False]["2.weight:0"].tolist() == [False, True]
    assert gone[True]["2.weight:0"].tolist() == [True, False]


def test_it_trains_on_and_meets_its_budget(images):
    result = l1_filters(images.net, images.x, budget=topiarist.Budget(macs=0.5), **images.told)
    assert result.verification.passed
    assert result.plan.achieved["macs"] <= 0.5
    assert result.curve[-1]["accuracy"] > 0.9


def test_an_unknown_configuration_is_refused(images):
    with pytest.raises(InputError, match="nearest: resnet56-"):
        l1_filters(images.net, images.x, ratios="resnet56")
    with pytest.raises(InputError, match="fits no layer"):
        l1_filters(images.net, images.x, ratios="resnet56-a")
