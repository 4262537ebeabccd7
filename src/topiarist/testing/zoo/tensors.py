"""Tensors of all kinds: buffers, constants, masks, tables, norms; and what is beyond the rules, which pins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from topiarist.testing.zoo.base import Entry, Net, net, x

# ------------------------------------------------------------------------------------------------- tensors of all kinds


@net
def buffers_with_channels() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        hidden = (m.first(x) - m.mean) * m.scale
        return m.last(F.relu(hidden)) + hidden.sum(-1, keepdim=True)

    model = Net(forward, first=nn.Linear(6, 10), last=nn.Linear(10, 4), scale=torch.rand(10) + 0.5)
    model.register_buffer("mean", torch.randn(10))
    return model, x(3, 6)


@dataclass
class _Tables:
    """Tensors that an object keeps, one of them in a dict."""

    shift: Tensor
    others: dict[str, Tensor]


@net
def tensors_in_containers() -> Entry:
    """In a list, a tuple in a list, a dict and a dataclass, one of them twice."""

    def forward(m: Any, x: Tensor) -> Any:
        hidden = F.relu(m.first(x) * m.tables[1][0]) * m.kept.others["gate"]
        mixed = (hidden @ m.cache["mix"] - m.tables[0] + m.kept.shift) * m.cache["again"]
        return m.last(mixed) + mixed.sum(-1, keepdim=True)

    parts = {"first": nn.Linear(6, 10), "last": nn.Linear(8, 4)}
    tables = [torch.randn(8), (torch.rand(10) + 0.5, 3)]
    cache = {"again": tables[0], "mix": torch.randn(10, 8)}
    kept = _Tables(torch.randn(8), {"gate": torch.rand(10) + 0.5})
    return Net(forward, **parts, tables=tables, cache=cache, kept=kept), x(3, 6)


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
def written_by_index() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        hidden = F.relu(m.first(x))
        table = torch.zeros_like(hidden)
        table[:, [3, 0]] = hidden[:, 1:3] * m.scale
        order = hidden.argsort(1)
        return m.last(table.scatter_add(1, order, hidden).index_fill(1, torch.tensor([2]), 0.0))

    return Net(forward, first=nn.Linear(6, 8), scale=nn.Parameter(torch.empty(8)), last=nn.Linear(8, 4)), x(3, 5, 6)


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
