"""Inputs, outputs, and sizes written in Python."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from topiarist.testing.zoo.attention import attend
from topiarist.testing.zoo.base import Entry, Net, net, x

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
        return self.out(attend(q, k, v, 0.5).transpose(1, 2).reshape(b, n, self.config.heads * self.dim))


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
def shifted_by_size() -> Entry:
    """By a number that no weight makes up for."""

    def forward(m: Any, x: Tensor) -> Any:
        hidden = F.relu(m.first(x))
        return m.last(F.relu(m.second(hidden + 1 / hidden.shape[-1])))

    return Net(forward, first=nn.Linear(6, 4), second=nn.Linear(4, 16), last=nn.Linear(16, 4)), x(3, 6)


@net
def keeps_its_size() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        m.width = m.first.weight.shape[0]
        hidden = F.relu(m.first(x)).view(x.shape[0], m.width, 1)
        return m.last(hidden[..., 0])

    return Net(forward, first=nn.Linear(6, 10), last=nn.Linear(10, 4), width=0), x(3, 6)
