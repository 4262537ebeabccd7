"""Perceptrons and convolutions: residual sums, concatenations, groups, norms over channels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from topiarist.models.resnet import BasicBlock
from topiarist.testing.zoo.base import Entry, Net, net, x

# ---------------------------------------------------------------------------------------- perceptrons and convolutions


@net
def mlp() -> Entry:
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 4)), x(3, 6)


@net
def layer_norm_mlp() -> Entry:
    return nn.Sequential(nn.Linear(6, 10), nn.LayerNorm(10), nn.GELU(), nn.Linear(10, 4)), x(3, 6)


@net
def lenet() -> Entry:
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(6 * 3 * 2, 10), nn.ReLU(), nn.Linear(10, 5)), x(2, 1, 12, 10)


@net
def vgg_bn() -> Entry:
    layers: list[nn.Module] = []
    for num_in, num_out in ((3, 4), (4, 6), (6, 8)):
        layers += [nn.Conv2d(num_in, num_out, 3, padding=1, bias=False), nn.BatchNorm2d(num_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)), x(2, 3, 7, 5)


def _resnet(option: str) -> Entry:
    blocks = [BasicBlock(4, 4, 1, option), BasicBlock(4, 8, 2, option), BasicBlock(8, 8, 1, option)]
    stem = [nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)), x(2, 3, 6, 6)


@net
def resnet_option_a() -> Entry:
    return _resnet("A")


@net
def resnet_option_b() -> Entry:
    return _resnet("B")


@net
def dense_block() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        for norm, conv in zip(m.norms, m.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return m.head(x.mean((2, 3)))

    convs = nn.ModuleList([nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(7, 5, 3, padding=1), nn.Conv2d(12, 4, 1)])
    norms = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(7), nn.BatchNorm2d(12)])
    return Net(forward, convs=convs, norms=norms, head=nn.Linear(16, 5)), x(2, 3, 6, 5)


@net
def channel_shuffle() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        x = F.relu(m.first(x))
        b, c, h, w = x.shape
        x = x.view(b, m.num_groups, c // m.num_groups, h, w).transpose(1, 2).reshape(b, -1, h, w)
        return m.last(m.second(x))

    first, second = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 8, 3, groups=2)
    return Net(forward, first=first, second=second, last=nn.Conv2d(8, 2, 1), num_groups=2), x(2, 3, 6, 5)


@net
def channel_shuffle_operator() -> Entry:
    shuffle = nn.ChannelShuffle(3)
    return nn.Sequential(nn.Conv2d(3, 12, 1), nn.ReLU(), shuffle, nn.Conv2d(12, 4, 3)), x(2, 3, 6, 5)


@net
def depthwise() -> Entry:
    layers = [nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 16, 3, padding=1, groups=8)]
    return nn.Sequential(*layers, nn.Hardswish(), nn.Conv2d(16, 4, 1)), x(2, 3, 6, 5)


@net
def grouped() -> Entry:
    layers = [nn.Conv2d(3, 12, 1), nn.ReLU(), nn.Conv2d(12, 8, 3, groups=4), nn.ReLU(), nn.Conv2d(8, 5, 1)]
    return nn.Sequential(*layers), x(2, 3, 6, 5)


@net
def u_net() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        skip = F.relu(m.down(x))
        x = F.relu(m.up(F.relu(m.middle(F.max_pool2d(skip, 2)))))
        return m.last(torch.cat([skip, x], 1))

    parts = {"down": nn.Conv2d(2, 6, 3, padding=1), "middle": nn.Conv2d(6, 10, 3, padding=1)}
    up = nn.ConvTranspose2d(10, 4, 2, stride=2)
    return Net(forward, **parts, up=up, last=nn.Conv2d(10, 3, 1)), x(2, 2, 8, 6)


@net
def transposed_groups() -> Entry:
    layers = [nn.Conv1d(3, 8, 1), nn.ReLU(), nn.ConvTranspose1d(8, 6, 3, groups=2), nn.ReLU(), nn.Conv1d(6, 4, 1)]
    return nn.Sequential(*layers), x(2, 3, 7)


@net
def conv3d() -> Entry:
    return nn.Sequential(nn.Conv3d(2, 4, 2), nn.BatchNorm3d(4), nn.ELU(), nn.Conv3d(4, 3, 1)), x(2, 2, 3, 4, 5)


@net
def squeeze_excite() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        x = F.silu(m.first(x))
        gate = torch.sigmoid(m.expand(F.relu(m.squeeze(x.mean((2, 3), keepdim=True)))))
        return m.last(x * gate)

    parts = {"first": nn.Conv2d(3, 8, 3), "squeeze": nn.Conv2d(8, 4, 1), "expand": nn.Conv2d(4, 8, 1)}
    return Net(forward, **parts, last=nn.Conv2d(8, 5, 1)), x(2, 3, 6, 5)


@net
def group_norm() -> Entry:
    layers = [nn.Conv2d(3, 12, 3), nn.GroupNorm(4, 12), nn.ReLU(), nn.Conv2d(12, 6, 1), nn.GroupNorm(1, 6)]
    return nn.Sequential(*layers, nn.Conv2d(6, 4, 1)), x(2, 3, 6, 5)


@net
def instance_norm() -> Entry:
    layers = [nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8, affine=True), nn.PReLU(8), nn.Conv2d(8, 6, 1)]
    return nn.Sequential(*layers, nn.InstanceNorm2d(6), nn.Conv2d(6, 4, 1)), x(2, 3, 6, 5)


@net
def pixel_shuffle() -> Entry:
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.PixelShuffle(2), nn.Conv2d(2, 6, 1), nn.PixelUnshuffle(2)]
    return nn.Sequential(*layers, nn.Conv2d(24, 4, 1)), x(2, 3, 6, 8)


@net
def pad_channels() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        x = F.relu(m.first(x))
        return m.last(m.second(x) + F.pad(x, (0, 0, 0, 0, m.before, m.after)))

    parts = {"first": nn.Conv2d(3, 4, 1), "second": nn.Conv2d(4, 10, 1), "last": nn.Conv2d(10, 3, 1)}
    return Net(forward, **parts, before=2, after=4), x(2, 3, 5, 4)


@net
def pad_to_width() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        small = m.first(x)
        large = m.second(small)
        return m.last(large + F.pad(small, (0, large.shape[-1] - small.shape[-1])))

    return Net(forward, first=nn.Linear(5, 6), second=nn.Linear(6, 10), last=nn.Linear(10, 3)), x(4, 5)


@net
def average_over_features() -> Entry:
    layers = [nn.Linear(5, 8), nn.ReLU(), nn.AvgPool1d(3, stride=1, padding=1), nn.Linear(8, 6), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(6, 4)), x(2, 3, 5)


@net
def mixer() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        x = m.patches(x).flatten(2)
        x = x + m.token2(F.gelu(m.token1(x)))
        x = x.transpose(1, 2)
        x = x + m.channel2(F.gelu(m.channel1(m.norm(x))))
        return m.head(x.mean(1))

    parts = {"token1": nn.Linear(6, 10), "token2": nn.Linear(10, 6)}
    more = {"channel1": nn.Linear(8, 14), "channel2": nn.Linear(14, 8), "norm": nn.LayerNorm(8)}
    return Net(forward, patches=nn.Conv2d(3, 8, 2, 2), **parts, **more, head=nn.Linear(8, 4)), x(2, 3, 4, 6)


@net
def patches_as_tokens() -> Entry:
    """Patches of feature maps are mixed one by one and put back in their places."""

    def forward(m: Any, x: Tensor) -> Any:
        features = F.relu(m.first(x))
        b, c, h, w = features.shape
        patches = F.unfold(features, 2, stride=2).view(b, c, 4, -1).transpose(1, 3)
        mixed = F.gelu(m.mix(patches)).transpose(1, 3).reshape(b, -1, patches.shape[1])
        return m.last(F.fold(mixed, (h, w), 2, stride=2) + F.interpolate(features, (h, w)))

    return Net(forward, first=nn.Conv2d(3, 6, 1), mix=nn.Linear(6, 6), last=nn.Conv2d(6, 4, 1)), x(2, 3, 4, 6)


@net
def sampled_images() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        features = m.first(x)
        places = m.places(features.mean((2, 3))).tanh().unflatten(1, (-1, 1, 2))
        return m.last(F.grid_sample(features, places, align_corners=False)[..., 0].mT)

    return Net(forward, first=nn.Conv2d(3, 6, 1), places=nn.Linear(6, 10), last=nn.Linear(6, 4)), x(2, 3, 4, 6)
