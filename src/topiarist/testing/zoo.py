"""Small difficult networks: what real models do to their axes, one thing at a time, in a few lines each.

`ZOO` maps a name to a function that makes a network and example inputs. `build` makes one the same way every time, with
every parameter and statistic away from its usual start (a bias of zero or a variance of one hides mistakes).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from topiarist.models import VisionTransformer
from topiarist.models.resnet import BasicBlock

Entry = tuple[nn.Module, Any]
Factory = Callable[[], Entry]

ZOO: dict[str, Factory] = {}


class Net(nn.Module):
    """A module from a function ``forward(self, *inputs)`` and whatever that function reads from ``self``."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


def build(name: str, seed: int = 0) -> Entry:
    """The network called ``name`` and its example inputs, drawn from ``seed``; global random state stays as it was.

    Example:
        >>> model, inputs = build("mlp")
        >>> model(inputs).shape
        torch.Size([3, 4])
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model, inputs = ZOO[name]()
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) / max(1, parameter[0].numel()) ** 0.5 + 0.05)
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
        return model, inputs


def net(factory: Factory) -> Factory:
    """Put a network into `ZOO` under the function's name."""
    ZOO[factory.__name__] = factory
    return factory


def x(*shape: int) -> Tensor:
    """Inputs of a shape."""
    return torch.randn(*shape)


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


# ---------------------------------------------------------------------------------------------------------- attention


@net
def vit() -> Entry:
    return VisionTransformer(image_size=8, num_classes=5, dim=12, depth=2, num_heads=3, num_hidden=10), x(2, 3, 8, 8)


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return torch.softmax(q @ k.transpose(-2, -1) * scale, -1) @ v


@net
def fused_qkv_heads_first() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        b, n, _ = x.shape
        q, k, v = m.qkv(x).view(b, n, m.heads, 3 * m.dim).transpose(1, 2).split(m.dim, -1)
        return m.out(_attend(q, k, v, 0.5).transpose(1, 2).reshape(b, n, m.heads * m.dim))

    return Net(forward, qkv=nn.Linear(6, 36), out=nn.Linear(12, 6), heads=3, dim=4), x(2, 5, 6)


@net
def fused_qkv_chunk() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        b, n, _ = x.shape
        q, k, v = (t.view(b, n, m.heads, -1).transpose(1, 2) for t in m.qkv(x).chunk(3, -1))
        return m.out(_attend(q, k, v, 0.5).transpose(1, 2).reshape(b, n, -1))

    return Net(forward, qkv=nn.Linear(6, 36), out=nn.Linear(12, 6), heads=3), x(2, 5, 6)


def _separate(**parts: Any) -> dict[str, Any]:
    return {name: nn.Linear(6, 12) for name in "qkv"} | {"out": nn.Linear(12, 6), "heads": 3, "dim": 4} | parts


@net
def separate_qkv() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        shape = (*x.shape[:-1], m.heads, m.dim)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (m.q, m.k, m.v))
        mixed = F.scaled_dot_product_attention(q, k, v, scale=0.5)
        return m.out(mixed.transpose(1, 2).flatten(2))

    return Net(forward, **_separate()), x(2, 5, 6)


@net
def attention_with_default_scale() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        q, k, v = (layer(x).unflatten(-1, (m.heads, m.dim)).transpose(1, 2) for layer in (m.q, m.k, m.v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return m.out(mixed.transpose(1, 2).flatten(2))

    return Net(forward, **_separate()), x(2, 5, 6)


@net
def attention_with_computed_scale() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        b, n, c = x.shape
        q, k, v = (layer(x).view(b, n, m.heads, -1).transpose(1, 2) for layer in (m.q, m.k, m.v))
        return m.out(_attend(q, k, v, q.size(-1) ** -0.5).transpose(1, 2).reshape(b, n, 2 * c))

    return Net(forward, **_separate()), x(2, 5, 6)


@net
def einsum_attention() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        q, k, v = (torch.einsum("bnc,hcd->bhnd", x, w) for w in (m.q, m.k, m.v))
        weights = torch.softmax(torch.einsum("bhnd,bhmd->bhnm", q, k) / 2, -1)
        return torch.einsum("bhnm,bhmd,hdc->bnc", weights, v, m.out)

    weights = {name: nn.Parameter(torch.empty(3, 6, 4)) for name in "qkv"}
    return Net(forward, **weights, out=nn.Parameter(torch.empty(3, 4, 6))), x(2, 5, 6)


@net
def attention_with_bias_table() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        q, k, v = (layer(x).unflatten(-1, (m.heads, -1)).transpose(1, 2) for layer in (m.q, m.k, m.v))
        bias = m.table[m.places].permute(2, 0, 1)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=0.5)
        return m.out(mixed.transpose(1, 2).flatten(2))

    model = Net(forward, **_separate(), table=nn.Parameter(torch.empty(9, 3)))
    model.register_buffer("places", torch.arange(5)[:, None] - torch.arange(5) + 4)
    return model, x(2, 5, 6)


@net
def grouped_query_attention() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        b, n, _ = x.shape
        q = m.q(x).view(b, n, m.heads, m.dim).transpose(1, 2)
        k, v = (layer(x).view(b, n, m.groups, m.dim).transpose(1, 2) for layer in (m.k, m.v))
        k, v = (t.repeat_interleave(m.heads // m.groups, 1) for t in (k, v))
        return m.out(_attend(q, k, v, 0.5).transpose(1, 2).reshape(b, n, -1))

    parts = {"q": nn.Linear(6, 24), "k": nn.Linear(6, 12), "v": nn.Linear(6, 12), "out": nn.Linear(24, 6)}
    return Net(forward, **parts, heads=6, groups=3, dim=4), x(2, 5, 6)


@net
def grouped_query_attention_by_expand() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        b, n, _ = x.shape
        q = m.q(x).view(b, n, -1, m.dim).transpose(1, 2)
        k, v = (layer(x).view(b, n, -1, m.dim).transpose(1, 2) for layer in (m.k, m.v))
        k, v = (
            t[:, :, None].expand(b, t.shape[1], m.repeats, n, m.dim).reshape(b, t.shape[1] * m.repeats, n, m.dim)
            for t in (k, v)
        )
        return m.out(_attend(q, k, v, 0.5).transpose(1, 2).reshape(b, n, -1))

    parts = {"q": nn.Linear(6, 24), "k": nn.Linear(6, 12), "v": nn.Linear(6, 12), "out": nn.Linear(24, 6)}
    return Net(forward, **parts, repeats=2, dim=4), x(2, 5, 6)


class _Rotary(nn.Module):
    """Rotary positions, with the table kept for the next call."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.table: Tensor | None = None
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None or self.table.shape[0] != x.shape[-2]:
            angle = torch.arange(x.shape[-2])[:, None] / 10 ** (torch.arange(0, self.dim, 2) / self.dim)
            self.table = torch.cat([angle, angle], -1)
        a, b = x.chunk(2, -1)
        return x * self.table.cos().to(x) + torch.cat([-b, a], -1) * self.table.sin().to(x)


@net
def rotary_attention() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        q, k, v = (layer(x).unflatten(-1, (m.heads, m.dim)).transpose(1, 2) for layer in (m.q, m.k, m.v))
        return m.out(_attend(m.rotary(q), m.rotary(k), v, 0.5).transpose(1, 2).flatten(2))

    return Net(forward, **_separate(rotary=_Rotary(4))), x(2, 5, 6)


@net
def multihead_attention() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        x = m.first(x)
        return m.last(x + m.attention(x, x, x)[0])

    attention = nn.MultiheadAttention(12, 3, batch_first=True)
    return Net(forward, first=nn.Linear(6, 12), attention=attention, last=nn.Linear(12, 4)), x(2, 5, 6)


@net
def transformer_encoder() -> Entry:
    layer = nn.TransformerEncoderLayer(12, 3, 16, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(nn.Linear(6, 12), encoder, nn.Linear(12, 4)), x(2, 5, 6)


@net
def heads_in_a_loop() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        q, k, v = m.q(x), m.k(x), m.v(x)
        parts = []
        for i in range(m.heads):
            part = slice(i * m.dim, (i + 1) * m.dim)
            parts.append(_attend(q[..., part], k[..., part], v[..., part], 0.5))
        return m.out(torch.cat(parts, -1))

    return Net(forward, **_separate()), x(2, 5, 6)


# -------------------------------------------------------------------------------------------------- gates and mixtures


@net
def glu_by_chunk() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        value, gate = m.first(x).chunk(2, dim=-1)
        return m.last(value * F.silu(gate))

    return Net(forward, first=nn.Linear(6, 16), last=nn.Linear(8, 4)), x(3, 6)


@net
def glu_operator() -> Entry:
    return nn.Sequential(nn.Conv1d(6, 16, 3), nn.GLU(1), nn.Conv1d(8, 4, 1)), x(2, 6, 7)


@net
def swiglu() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        return m.down(F.silu(m.gate(x)) * m.up(x))

    return Net(forward, gate=nn.Linear(6, 9), up=nn.Linear(6, 9), down=nn.Linear(9, 4)), x(3, 6)


@net
def uneven_chunk() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        a, b, c = m.first(x).chunk(3, -1)
        return m.last(torch.cat([c, a * b], -1))

    return Net(forward, first=nn.Linear(6, 8), last=nn.Linear(5, 4)), x(3, 6)


@net
def tensor_split() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        a, b = torch.hsplit(m.first(x), 2)
        c, d = torch.tensor_split(m.second(a * b), 2, dim=1)
        return m.last(c * d)

    return Net(forward, first=nn.Linear(6, 12), second=nn.Linear(6, 8), last=nn.Linear(4, 3)), x(3, 6)


@net
def split_by_size() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        a, b, c = torch.split(m.first(x), split_size_or_sections=m.size, dim=-1)
        return m.last(torch.cat([a + b, c], -1))

    return Net(forward, first=nn.Linear(6, 12), last=nn.Linear(8, 4), size=4), x(3, 6)


@net
def slice_and_concatenate() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        x = m.first(x)
        return m.last(torch.cat([x[:, m.cut :], F.relu(x[:, : m.cut])], 1))

    return Net(forward, first=nn.Conv2d(3, 10, 1), last=nn.Conv2d(10, 4, 3), cut=4), x(2, 3, 5, 4)


@net
def last_channels() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        x = m.first(x)
        return m.last(x[:, -m.kept :] * x[..., : m.kept])

    return Net(forward, first=nn.Linear(6, 10), last=nn.Linear(5, 4), kept=5), x(3, 6)


@net
def mixture_of_experts() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        weights, chosen = torch.topk(torch.softmax(m.gate(x), -1), 2, -1)
        hidden = F.relu(torch.einsum("bc,bkch->bkh", x, m.up[chosen]))
        return torch.einsum("bkh,bkhc,bk->bc", hidden, m.down[chosen], weights)

    up, down = nn.Parameter(torch.empty(4, 6, 8)), nn.Parameter(torch.empty(4, 8, 6))
    return Net(forward, gate=nn.Linear(6, 4), up=up, down=down), x(3, 6)


@net
def batched_experts() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        hidden = F.gelu(torch.baddbmm(m.bias[:, None], x.expand(m.up.shape[0], -1, -1), m.up))
        weights = torch.softmax(m.gate(x), -1)
        return (torch.bmm(hidden, m.down) * weights.T[..., None]).sum(0)

    up, down = nn.Parameter(torch.empty(4, 6, 8)), nn.Parameter(torch.empty(4, 8, 5))
    return Net(forward, gate=nn.Linear(6, 4), up=up, down=down, bias=nn.Parameter(torch.empty(4, 8))), x(3, 6)


# ------------------------------------------------------------------------------------------------------- shared things


@net
def siamese() -> Entry:
    def forward(m: Any, a: Tensor, b: Tensor) -> Any:
        a, b = (F.relu(m.norm(m.branch(t))) for t in (a, b))
        return m.head((a - b).abs().flatten(1))

    parts = {"branch": nn.Conv1d(3, 6, 3), "norm": nn.BatchNorm1d(6), "head": nn.Linear(24, 2)}
    return Net(forward, **parts), (x(2, 3, 6), x(2, 3, 6))


@net
def recurrent_by_hand() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        state = x.new_zeros(x.shape[0], m.hidden)
        for step in x.unbind(1):
            state = torch.tanh(m.input(step) + m.state(state))
        return m.head(state)

    parts = {"input": nn.Linear(3, 8), "state": nn.Linear(8, 8), "head": nn.Linear(8, 4)}
    return Net(forward, **parts, hidden=8), x(2, 5, 3)


@net
def tied_embedding() -> Entry:
    def forward(m: Any, ids: Tensor) -> Any:
        x = m.table(ids)
        return m.output(x + m.mlp(x))

    model = Net(forward, table=nn.Embedding(11, 8), output=nn.Linear(8, 11, bias=False))
    model.mlp = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8))
    model.output.weight = model.table.weight  # type: ignore[union-attr]
    return model, torch.randint(0, 11, (2, 5))


@net
def functional_tie() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        return F.linear(torch.sigmoid(m.encoder(x)), m.encoder.weight.t(), m.bias)

    return Net(forward, encoder=nn.Linear(6, 9), bias=nn.Parameter(torch.empty(6))), x(3, 6)


@net
def parameters_in_a_list() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        for weight in m.weights[:-1]:
            x = torch.relu(x @ weight)
        return x @ m.weights[-1]

    a, b = nn.Parameter(torch.empty(6, 9)), nn.Parameter(torch.empty(9, 4))
    return Net(forward, a=a, b=b, weights=[a, b]), x(3, 6)


# ------------------------------------------------------------------------------------------------- inputs and outputs


@net
def two_inputs_and_outputs() -> Entry:
    def forward(m: Any, *, image: Tensor, text: Tensor) -> Any:
        joint = F.relu(m.image(image).mean((2, 3)) + m.text(text).mean(1))
        return {"class": m.classes(joint), "extra": SimpleNamespace(boxes=[m.boxes(joint)])}

    parts = {"image": nn.Conv2d(3, 8, 3), "text": nn.Embedding(7, 8), "classes": nn.Linear(8, 5)}
    inputs = {"image": x(2, 3, 5, 4), "text": torch.randint(0, 7, (2, 3))}
    return Net(forward, **parts, boxes=nn.Linear(8, 4)), inputs


@net
def returns_features() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        hidden = F.relu(m.first(x))
        return SimpleNamespace(logits=m.last(m.second(hidden)), features=(SimpleNamespace(first=hidden),))

    return Net(forward, first=nn.Linear(6, 8), second=nn.Linear(8, 10), last=nn.Linear(10, 4)), x(3, 6)


@net
def returns_its_sizes() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        hidden = F.relu(m.first(x))
        holder = SimpleNamespace(shape=hidden.shape, width=m.width)
        holder.itself = holder
        return m.last(hidden), hidden.shape[0], holder

    return Net(forward, first=nn.Linear(6, 10), last=nn.Linear(10, 4), width=10), x(3, 6)


@net
def auxiliary_head() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        hidden = F.relu(m.first(x))
        return (m.head(hidden), m.aux2(F.relu(m.aux1(hidden)))) if m.training else m.head(hidden)

    parts = {"first": nn.Linear(6, 10), "head": nn.Linear(10, 4)}
    return Net(forward, **parts, aux1=nn.Linear(10, 8), aux2=nn.Linear(8, 4)), x(3, 6)


@net
def data_dependent() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        hidden = m.norm(m.first(x))
        hidden = F.relu(hidden) if hidden.sum() > 0 else torch.tanh(hidden)
        return m.last(hidden)

    return Net(forward, first=nn.Linear(6, 10), norm=nn.BatchNorm1d(10), last=nn.Linear(10, 4)), x(3, 6)


@net
def coincident_sizes() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        hidden = F.relu(m.first(x))
        hidden = hidden + m.mix(hidden.transpose(1, 2)).transpose(1, 2)
        return m.last(hidden * m.gain)

    parts = {"first": nn.Linear(4, 4), "mix": nn.Linear(4, 4), "last": nn.Linear(4, 4)}
    return Net(forward, **parts, gain=nn.Parameter(torch.empty(4))), x(4, 4, 4)


# ---------------------------------------------------------------------------------------------- sizes written in Python


@dataclass
class _Config:
    width: int
    heads: int
    name: str = "shared"


class _ConfiguredAttention(nn.Module):
    def __init__(self, config: _Config) -> None:
        super().__init__()
        self.config = config
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.dim = config.width // config.heads

    def forward(self, x: Tensor) -> Any:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.config.heads, self.dim).permute(2, 0, 3, 1, 4).unbind(0)
        return self.out(_attend(q, k, v, 0.5).transpose(1, 2).reshape(b, n, self.config.heads * self.dim))


@net
def shared_config() -> Entry:
    config = _Config(12, 3)
    blocks = [_ConfiguredAttention(config), nn.LayerNorm(12), _ConfiguredAttention(config)]
    return nn.Sequential(nn.Linear(6, 12), *blocks, nn.Linear(12, 4)), x(2, 5, 6)


@net
def sizes_in_a_list() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        a, b = m.first(x).split(m.sizes, -1)
        b = b.reshape(-1, m.more["rows"], m.more["columns"]).transpose(1, 2).flatten(1)
        return m.last(torch.cat([a, b], -1))

    parts = {"first": nn.Linear(6, 16), "last": nn.Linear(16, 4)}
    return Net(forward, **parts, sizes=[4, 12], more={"rows": 3, "columns": 4}), x(3, 6)


@net
def literal_size() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        hidden = F.relu(m.first(x)).view(-1, 2, 5).transpose(1, 2).reshape(-1, 10)
        return m.last(F.relu(m.second(hidden)))

    return Net(forward, first=nn.Linear(6, 10), second=nn.Linear(10, 8), last=nn.Linear(8, 4)), x(3, 6)


@net
def view_minus_one() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        hidden = F.relu(m.first(x)).view(-1, m.part)
        hidden = m.second(hidden).view(x.shape[0], -1)
        return m.last(hidden)

    return Net(forward, first=nn.Linear(6, 12), second=nn.Linear(4, 5), last=nn.Linear(15, 4), part=4), x(2, 6)


@net
def size_checked_in_forward() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        hidden = F.relu(m.first(x))
        if hidden.shape[-1] != m.width:
            raise ValueError(f"expected {m.width} features")
        return m.last(hidden)

    return Net(forward, first=nn.Linear(6, 10), last=nn.Linear(10, 4), width=10), x(3, 6)


@net
def mean_by_size() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        a, b, c = F.relu(m.first(x)), F.relu(m.second(x)), F.relu(m.third(x))
        total = a.sum(-1) / a.shape[-1] + b.sum(-1) / (b.numel() / b.shape[0]) + c.sum(-1) / int(c.size(-1))
        return m.last(total[:, None] * m.gain)

    layers = {name: nn.Linear(6, 8) for name in ("first", "second", "third")}
    return Net(forward, **layers, last=nn.Linear(5, 4), gain=nn.Parameter(torch.empty(5))), x(3, 6)


@net
def keeps_its_size() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        m.width = m.first.weight.shape[0]
        hidden = F.relu(m.first(x)).view(x.shape[0], m.width, 1)
        return m.last(hidden[..., 0])

    return Net(forward, first=nn.Linear(6, 10), last=nn.Linear(10, 4), width=0), x(3, 6)


# ------------------------------------------------------------------------------------------------- tensors of all kinds


@net
def buffers_with_channels() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        hidden = (m.first(x) - m.mean) * m.scale
        return m.last(F.relu(hidden)) + hidden.sum(-1, keepdim=True)

    model = Net(forward, first=nn.Linear(6, 10), last=nn.Linear(10, 4), scale=torch.rand(10) + 0.5)
    model.register_buffer("mean", torch.randn(10))
    return model, x(3, 6)


@net
def layer_scale() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        x = m.first(x)
        x = x + m.gain * m.down(F.gelu(m.up(x)))
        return m.last(torch.cat([m.token.expand(x.shape[0], -1, -1), x], 1)[:, 0] + x.sum(1))

    parts = {"first": nn.Linear(6, 8), "up": nn.Linear(8, 12), "down": nn.Linear(12, 8), "last": nn.Linear(8, 4)}
    gain, token = nn.Parameter(torch.empty(8)), nn.Parameter(torch.empty(1, 1, 8))
    return Net(forward, **parts, gain=gain, token=token), x(2, 5, 6)


@net
def expanded_like() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        hidden = F.relu(m.first(x))
        gate = torch.sigmoid(m.gate(x)).expand_as(hidden)
        return gate @ m.mix + (hidden * gate).sum(-1, keepdim=True) + m.last(hidden)

    parts = {"first": nn.Linear(6, 8), "gate": nn.Linear(6, 1), "last": nn.Linear(8, 4)}
    return Net(forward, **parts, mix=nn.Parameter(torch.empty(8, 4))), x(3, 6)


@net
def constants_made_inside() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        hidden = F.relu(m.first(x))
        hidden = hidden + torch.ones_like(hidden) + torch.zeros(hidden.shape) + hidden.new_full((m.width,), 0.5)
        return m.last(hidden) + hidden.sum(-1, keepdim=True)

    return Net(forward, first=nn.Linear(6, 8), last=nn.Linear(8, 4), width=8), x(3, 6)


@net
def in_place() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        hidden = m.first(x)
        hidden += 1
        hidden[:, : m.width].mul_(2).add_(m.gain)
        return m.last(F.relu(hidden, inplace=True)) + hidden.sum(-1, keepdim=True)

    gain = nn.Parameter(torch.empty(4))
    return Net(forward, first=nn.Linear(6, 10), last=nn.Linear(10, 4), gain=gain, width=4), x(3, 6)


@net
def in_place_on_a_view() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        hidden = m.first(x)
        hidden[:, : m.width].fill_(1.5)
        hidden[:, m.width :] += 0.25
        return hidden.sum(-1, keepdim=True) + m.last(hidden)

    return Net(forward, first=nn.Linear(6, 10), last=nn.Linear(10, 4), width=4), x(3, 6)


@net
def changes_its_input() -> Entry:
    def forward(m: Any, x: Tensor, ids: Tensor) -> Any:
        x.mul_(0.5).add_(1)
        ids += 1
        return m.last(F.relu(m.first(x)) + m.table(ids))

    parts = {"first": nn.Linear(6, 10), "last": nn.Linear(10, 4), "table": nn.Embedding(50, 10)}
    return Net(forward, **parts), (x(3, 6), torch.tensor([0, 1, 2]))


@net
def where_and_masks() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        hidden = m.first(x)
        hidden = torch.where(hidden > 0, hidden, torch.tensor(0.3, dtype=hidden.dtype))
        hidden = hidden.masked_fill(hidden > 2, 2.0).clamp(m.low, m.high)
        return m.last(hidden) + hidden.sum(-1, keepdim=True)

    low, high = nn.Parameter(torch.empty(8)), nn.Parameter(torch.empty(8))
    return Net(forward, first=nn.Linear(6, 8), last=nn.Linear(8, 4), low=low, high=high), x(3, 6)


@net
def chosen_rows() -> Entry:
    def forward(m: Any, x: Tensor, chosen: Tensor) -> Any:
        hidden = F.relu(m.first(x))
        return m.last(hidden[chosen][:, : m.width]) + m.other(hidden[chosen, m.width :])

    parts = {"first": nn.Linear(6, 10), "last": nn.Linear(7, 4), "other": nn.Linear(3, 4)}
    chosen = torch.tensor([[True, False, True], [False, True, True]])
    return Net(forward, **parts, width=7), (x(2, 3, 6), chosen)


@net
def constant_tables() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        hidden = F.relu(m.first(x))
        hidden = hidden[:, m.order] + hidden.index_select(1, m.order) + torch.gather(hidden, 1, m.order.expand(3, -1))
        return m.last(F.relu(m.second(hidden)))

    model = Net(forward, first=nn.Linear(6, 8), second=nn.Linear(8, 10), last=nn.Linear(10, 4))
    model.register_buffer("order", torch.randperm(8))
    return model, x(3, 6)


@net
def logarithms() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        a, b, c = F.softplus(m.first(x)), m.second(x), m.third(x)
        return m.last(torch.log(a * m.gain.abs())) + m.last2(1 / (b * m.gain)) + m.last3((c.abs() + 1).log())

    layers = {name: nn.Linear(6, 8) for name in ("first", "second", "third")}
    last = {name: nn.Linear(8, 4) for name in ("last", "last2", "last3")}
    return Net(forward, **layers, **last, gain=nn.Parameter(torch.empty(8))), x(3, 6)


@net
def normalised() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        a, b = F.normalize(m.first(x), dim=-1), m.second(x)
        b = (b - b.mean(-1, keepdim=True)) * torch.rsqrt(b.var(-1, keepdim=True) + 1e-5)
        return m.last(a) + m.last2(b)

    parts = {"first": nn.Linear(6, 8), "second": nn.Linear(6, 8), "last": nn.Linear(8, 4), "last2": nn.Linear(8, 4)}
    return Net(forward, **parts), x(3, 6)


@net
def rms_norm() -> Entry:
    return nn.Sequential(nn.Linear(6, 10), nn.RMSNorm(10), nn.SiLU(), nn.Linear(10, 4)), x(3, 6)


@net
def norms_in_float32() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        x = m.first(x)
        wide = x.to(torch.float32)
        wide = wide * torch.rsqrt(wide.pow(2).sum(-1, keepdim=True) + 1e-6)
        weights = F.softmax(m.gate(x), -1, dtype=torch.float32).to(x.dtype)
        return m.last((m.gain * wide.to(x.dtype)).float() * weights.float().sum(-1, keepdim=True))

    parts = {"first": nn.Linear(6, 8), "gate": nn.Linear(8, 3), "last": nn.Linear(8, 4)}
    return Net(forward, **parts, gain=nn.Parameter(torch.empty(8))), x(3, 6)


@net
def weight_norm() -> Entry:
    layers = [parametrizations.weight_norm(nn.Linear(6, 10)), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 4)]
    return nn.Sequential(*layers), x(3, 6)


@net
def spectral_norm() -> Entry:
    layers = [parametrizations.spectral_norm(nn.Linear(6, 10)), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 4)]
    return nn.Sequential(*layers), x(3, 6)


@net
def masked_in_forward() -> Entry:
    from topiarist.mask import PrunableDense

    return nn.Sequential(PrunableDense(6, 10, activation=nn.ReLU()), PrunableDense(10, 4)), x(3, 6)


# ---------------------------------------------------------------------------------------- beyond the rules: never wrong


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign() * x.abs().mean(-1, keepdim=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


@net
def custom_function() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        return m.last(_StraightThrough.apply(m.first(x)))  # type: ignore[no-untyped-call]

    return Net(forward, first=nn.Linear(6, 8), last=nn.Linear(8, 4)), x(3, 6)


@net
def unknown_operator() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        hidden = F.relu(m.first(x))
        return m.last(F.relu(m.second(torch.renorm(hidden, 2, 1, 1.0))))

    return Net(forward, first=nn.Linear(6, 8), second=nn.Linear(8, 10), last=nn.Linear(10, 4)), x(3, 6)


@net
def unfolded() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        patches = F.unfold(F.relu(m.first(x)), 2)
        return m.last(F.relu(m.second(patches.transpose(1, 2))))

    parts = {"first": nn.Conv2d(3, 4, 1), "second": nn.Linear(16, 10), "last": nn.Linear(10, 4)}
    return Net(forward, **parts), x(2, 3, 4, 5)


@net
def recurrent_layers() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        x = m.lstm(m.gru(m.first(x))[0])[0]
        return m.last(F.relu(m.second(x)))

    parts = {"gru": nn.GRU(8, 6, batch_first=True), "lstm": nn.LSTM(6, 5, batch_first=True)}
    return Net(forward, first=nn.Linear(3, 8), **parts, second=nn.Linear(5, 10), last=nn.Linear(10, 4)), x(2, 5, 3)


@net
def through_numpy() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        hidden = F.relu(m.first(x))
        scale = torch.from_numpy(hidden.detach().numpy() * 0.5)
        return m.last(F.relu(m.second(scale))) + m.other(hidden.data)

    parts = {"first": nn.Linear(6, 8), "second": nn.Linear(8, 10), "last": nn.Linear(10, 4), "other": nn.Linear(8, 4)}
    return Net(forward, **parts), x(3, 6)


@net
def ranked() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        hidden = F.relu(m.first(x))
        best = (
            torch.topk(hidden, 3, dim=1)[0]
            + hidden.sort(dim=1).values[:, :3]
            + torch.kthvalue(hidden, 2, 1)[0][:, None]
        )
        return m.last(F.relu(m.second(best.transpose(1, 2)))).transpose(1, 2)

    parts = {"first": nn.Conv1d(3, 8, 1), "second": nn.Linear(3, 10), "last": nn.Linear(10, 4)}
    return Net(forward, **parts), x(2, 3, 7)
