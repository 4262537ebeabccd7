"""Stacks of residual layers that hand more on than one tensor; each adds ``down`` of something to what it is given."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from topiarist.testing.zoo.base import Entry, Net, net, x

WIDTH, DEPTH = 6, 4


class Attending(nn.Module):
    """Self-attention with a bias by place, which the first layer looks up and hands to the others, as in T5."""

    def __init__(self, owns_bias: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 3 * 8, bias=False), nn.Linear(8, WIDTH, bias=False)
        self.table = nn.Embedding(9, 1) if owns_bias else None

    def forward(self, hidden: Tensor, mask: Tensor | None = None, bias: Tensor | None = None) -> Any:
        query, key, value = self.up(self.norm(hidden)).chunk(3, -1)
        if bias is None:
            places = torch.arange(hidden.shape[1])
            assert self.table is not None
            bias = self.table(places[:, None] - places + 4)[..., 0]
        weights = (query @ key.mT + bias).softmax(-1)
        return hidden + self.down(weights @ value), bias, weights


@net
def layers_with_a_shared_bias() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        hidden, bias = m.first(x), None
        for layer in m.layers:
            hidden, bias, _ = layer(hidden, None, bias)
        return m.last(hidden)

    layers = nn.ModuleList(Attending(i == 0) for i in range(DEPTH))
    return Net(forward, first=nn.Linear(3, WIDTH), layers=layers, last=nn.Linear(WIDTH, 2)), x(2, 5, 3)


class Fused(nn.Module):
    """The sum and the norm of a residual layer stand at its beginning, so that it takes and returns both terms."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 9), nn.Linear(9, WIDTH, bias=False)

    def forward(self, hidden: Tensor, *, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        residual = hidden if residual is None else hidden + residual
        return self.down(torch.tanh(self.up(self.norm(residual)))), residual + 0


@net
def layers_of_two_streams() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        hidden, residual = m.first(x), None
        for layer in m.layers:
            hidden, residual = layer(hidden, residual=residual)
        return m.last(hidden + residual)

    layers = nn.ModuleList(Fused() for _ in range(DEPTH))
    return Net(forward, first=nn.Linear(3, WIDTH), layers=layers, last=nn.Linear(WIDTH, 2)), x(2, 3)


class OfStates(nn.Module):
    """A dict with what is worked on, what is passed through, and a number that every layer adds to."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 9), nn.Linear(9, WIDTH, bias=False)

    def forward(self, state: dict[str, Any]) -> dict[str, Any]:
        hidden = state["hidden"]
        change = self.down(torch.tanh(self.up(hidden * state["mask"])))
        return {"hidden": hidden + change, "mask": state["mask"], "seen": [state["seen"][0] + change.sum(-1)]}


@net
def layers_of_states() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        state = {"hidden": m.first(x), "mask": (x[..., :1] > 0).to(x.dtype), "seen": [x[..., 0]]}
        for layer in m.layers:
            state = layer(state)
        return m.last(state["hidden"]) + state["seen"][0][..., None]

    layers = nn.ModuleList(OfStates() for _ in range(DEPTH))
    return Net(forward, first=nn.Linear(3, WIDTH), layers=layers, last=nn.Linear(WIDTH, 2)), x(4, 3)
