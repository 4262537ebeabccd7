"""Attention in the ways that it is written: fused and separate projections, shared keys, rotations, loops."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from topiarist.models import VisionTransformer
from topiarist.testing.zoo.base import Entry, Net, net, x

# ---------------------------------------------------------------------------------------------------------- attention


@net
def vit() -> Entry:
    return VisionTransformer(image_size=8, num_classes=5, dim=12, depth=2, num_heads=3, num_hidden=10), x(2, 3, 8, 8)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(q kᵀ · scale) v."""
    return torch.softmax(q @ k.transpose(-2, -1) * scale, -1) @ v


@net
def fused_qkv_heads_first() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        b, n, _ = x.shape
        q, k, v = m.qkv(x).view(b, n, m.heads, 3 * m.dim).transpose(1, 2).split(m.dim, -1)
        return m.out(attend(q, k, v, 0.5).transpose(1, 2).reshape(b, n, m.heads * m.dim))

    return Net(forward, qkv=nn.Linear(6, 36), out=nn.Linear(12, 6), heads=3, dim=4), x(2, 5, 6)


@net
def fused_qkv_chunk() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        b, n, _ = x.shape
        q, k, v = (t.view(b, n, m.heads, -1).transpose(1, 2) for t in m.qkv(x).chunk(3, -1))
        return m.out(attend(q, k, v, 0.5).transpose(1, 2).reshape(b, n, -1))

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
        return m.out(attend(q, k, v, q.size(-1) ** -0.5).transpose(1, 2).reshape(b, n, 2 * c))

    return Net(forward, **_separate()), x(2, 5, 6)


@net
def fused_attention_with_scale_in_place() -> Entry:
    """The queries are rows of one weight, and the scores are divided in place."""

    def forward(m: Any, x: Tensor) -> Any:
        b, n, _ = x.shape
        q, k, v = m.qkv(x).view(b, n, 3, -1, m.dim).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1)
        scores /= math.sqrt(m.dim)
        return m.out((torch.softmax(scores, -1) @ v).transpose(1, 2).flatten(2))

    return Net(forward, qkv=nn.Linear(6, 45), out=nn.Linear(15, 6), dim=5), x(2, 5, 6)


@net
def queries_for_two() -> Entry:
    """Queries meet two sets of keys, of which one product is scaled by a size: only these keys can make up for it."""

    def forward(m: Any, x: Tensor) -> Any:
        q, k, other = m.q(x), m.k(x), m.other(x)
        first = torch.softmax(q @ k.transpose(-2, -1) * (1.0 / q.shape[-1] ** 0.5), -1)
        second = torch.softmax(q @ other.transpose(-2, -1) / 2, -1)
        return m.out(m.v(x)) + first @ x + second @ x

    parts = {name: nn.Linear(6, 5) for name in ("q", "k", "other", "v")}
    return Net(forward, **parts, out=nn.Linear(5, 6)), x(2, 5, 6)


@net
def scaled_embedding() -> Entry:
    def forward(m: Any, ids: Tensor) -> Any:
        hidden = m.table(ids)
        return m.last(hidden * math.sqrt(hidden.shape[-1]))

    return Net(forward, table=nn.Embedding(7, 9), last=nn.Linear(9, 4)), torch.randint(0, 7, (2, 3))


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
        return m.out(attend(q, k, v, 0.5).transpose(1, 2).reshape(b, n, -1))

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
        return m.out(attend(q, k, v, 0.5).transpose(1, 2).reshape(b, n, -1))

    parts = {"q": nn.Linear(6, 24), "k": nn.Linear(6, 12), "v": nn.Linear(6, 12), "out": nn.Linear(24, 6)}
    return Net(forward, **parts, repeats=2, dim=4), x(2, 5, 6)


@net
def grouped_query_attention_by_flag() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        b, n, _ = x.shape
        q, k, v = (part(x).view(b, n, -1, 5).transpose(1, 2) for part in (m.q, m.k, m.v))
        out = F.scaled_dot_product_attention(q, k, v, scale=0.5, enable_gqa=True)
        return m.out(out.transpose(1, 2).flatten(2))

    parts = {"q": nn.Linear(7, 30), "k": nn.Linear(7, 10), "v": nn.Linear(7, 10), "out": nn.Linear(30, 7)}
    return Net(forward, **parts), x(2, 4, 7)


@net
def complex_rotary_attention() -> Entry:
    """Rotations as products of complex numbers."""

    def turn(x: Tensor, angles: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x.view(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)

    def forward(m: Any, x: Tensor) -> Any:
        b, n, _ = x.shape
        q, k, v = m.qkv(x).view(b, n, 3, -1, 4).permute(2, 0, 3, 1, 4).unbind(0)
        angles = torch.outer(torch.arange(n, dtype=x.dtype), m.frequencies)
        return m.out(attend(turn(q, angles), turn(k, angles), v, 0.5).transpose(1, 2).flatten(2))

    model = Net(forward, qkv=nn.Linear(7, 36), out=nn.Linear(12, 7))
    model.register_buffer("frequencies", torch.tensor([1.0, 0.1]))
    return model, x(2, 4, 7)


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
        return m.out(attend(m.rotary(q), m.rotary(k), v, 0.5).transpose(1, 2).flatten(2))

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
def encoder_and_decoder() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        return m.last(m.both(m.first(x), m.second(x[:, 1:])))

    both = nn.Transformer(12, 2, 1, 1, 16, dropout=0.0, batch_first=True)
    return Net(forward, first=nn.Linear(6, 12), second=nn.Linear(6, 12), both=both, last=nn.Linear(12, 4)), x(2, 5, 6)


@net
def heads_in_a_loop() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        q, k, v = m.q(x), m.k(x), m.v(x)
        parts = []
        for i in range(m.heads):
            part = slice(i * m.dim, (i + 1) * m.dim)
            parts.append(attend(q[..., part], k[..., part], v[..., part], 0.5))
        return m.out(torch.cat(parts, -1))

    return Net(forward, **_separate()), x(2, 5, 6)
