"""Gates, mixtures of experts, and what is used more than once."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from topiarist.testing.zoo.base import Entry, Net, net, x

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


@net
def sorted_experts() -> Entry:
    """Tokens sorted by their expert, all experts in one product, and the order put back."""

    def forward(m: Any, x: Tensor) -> Any:
        tokens = m.first(x.flatten(0, 1))
        expert, order = m.gate(tokens).argmax(-1).sort()
        ends = torch.histc(expert.float(), bins=len(m.up), min=0, max=len(m.up) - 1).cumsum(0, dtype=torch.int32)
        hidden = F.grouped_mm(F.silu(F.grouped_mm(tokens[order], m.up, offs=ends)), m.down.mT, offs=ends)
        back = torch.empty_like(order)
        back[order] = torch.arange(order.shape[0])
        return m.last(hidden[back] + tokens).view(*x.shape[:-1], -1)

    parts = {"first": nn.Linear(6, 8), "gate": nn.Linear(8, 3), "last": nn.Linear(8, 4)}
    weights = {"up": nn.Parameter(torch.empty(3, 8, 16)), "down": nn.Parameter(torch.empty(3, 8, 16))}
    return Net(forward, **parts, **weights), x(2, 5, 6)


@net
def experts_one_by_one() -> Entry:
    """Each expert takes the tokens that chose it, and adds to their places."""

    def forward(m: Any, x: Tensor) -> Any:
        tokens = m.first(x)
        chosen = F.one_hot(m.gate(tokens).topk(2, -1).indices, len(m.experts)).sum(1)
        total = torch.zeros_like(tokens)
        for i, expert in enumerate(m.experts):
            places = chosen[:, i].nonzero().flatten()
            total.index_add_(0, places, expert(tokens[places]))
        return m.last(total)

    experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 5), nn.GELU(), nn.Linear(5, 8)) for _ in range(3))
    return Net(forward, first=nn.Linear(6, 8), gate=nn.Linear(8, 3), experts=experts, last=nn.Linear(8, 4)), x(16, 6)


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
