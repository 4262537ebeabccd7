"""Deep streams of heads, recurrent layers, windows that overlap, frequencies."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from topiarist.testing.zoo.base import Entry, Net, net, x

# ------------------------------------------------------------------------------------- axes that shrink only together


@net
def deep_stream_of_heads() -> Entry:
    """Ten attentions on one stream: one head less anywhere is one head less in all of them."""

    def attention(m: Any, x: Tensor) -> Any:
        b, n, c = x.shape
        q, k, v = m.qkv(x).reshape(b, n, 3, m.num_heads, c // m.num_heads).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q * (c // m.num_heads) ** -0.5 @ k.transpose(-2, -1), -1)
        return x + m.out((weights @ v).transpose(1, 2).reshape(b, n, c))

    blocks = [Net(attention, qkv=nn.Linear(12, 36), out=nn.Linear(12, 12), num_heads=4) for _ in range(10)]
    return nn.Sequential(nn.Linear(5, 12), *blocks, nn.Linear(12, 4)), x(2, 3, 5)


@net
def quarters_and_heads() -> Entry:
    """A stream in four quarters, of which two are one, and in eight heads: it loses two of each quarter at a time."""

    def forward(m: Any, x: Tensor) -> Any:
        x = m.first(x)
        quarters = x.chunk(len(m.scales) + 1, dim=-1)
        made = [quarters[0]]
        for scale, quarter in zip(m.scales, quarters[1:], strict=True):
            made.append(torch.tanh((made[-1] + quarter) * scale) if len(made) < len(m.scales) else quarter * scale)
        x = torch.cat(made, -1)
        b, n, c = x.shape
        q, k, v = m.qkv(x).reshape(b, n, 3, m.num_heads, -1).permute(2, 0, 3, 4, 1)
        weights = torch.softmax(F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1), -1)
        return m.last(x + m.out((weights @ v).permute(0, 3, 1, 2).reshape(b, n, c)))

    parts = {"first": nn.Linear(5, 32), "qkv": nn.Linear(32, 96), "out": nn.Linear(32, 32), "last": nn.Linear(32, 4)}
    return Net(forward, **parts, scales=nn.ParameterList([torch.empty(8) for _ in range(3)]), num_heads=8), x(2, 3, 5)


@net
def split_by_a_quotient() -> Entry:
    """The size of a part is one attribute divided by another."""

    def forward(m: Any, x: Tensor) -> Any:
        parts = torch.split(F.relu(m.first(x)), m.in_channels // m.num_paths, -1)
        return m.last(torch.stack([path(part) for path, part in zip(m.paths, parts, strict=True)], 1).sum(1))

    paths = nn.ModuleList([nn.Linear(6, 8) for _ in range(2)])
    return Net(forward, first=nn.Linear(5, 12), paths=paths, last=nn.Linear(8, 4), in_channels=12, num_paths=2), x(3, 5)


@net
def token_by_tensor_split() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        token, rest = torch.tensor_split(F.relu(m.first(x)), indices=(1,), dim=1)
        return m.last(F.relu(m.second(rest)) + token)

    return Net(forward, first=nn.Linear(5, 8), second=nn.Linear(8, 8), last=nn.Linear(8, 4)), x(2, 4, 5)


@net
def features_as_places() -> Entry:
    """A convolution with a kernel of one place over the features of three branches."""

    def forward(m: Any, x: Tensor) -> Any:
        return m.last(m.mix(torch.stack([F.relu(branch(x)) for branch in m.branches], 1)).squeeze(1))

    branches = nn.ModuleList([nn.Linear(5, 8) for _ in range(3)])
    return Net(forward, branches=branches, mix=nn.Conv1d(3, 1, 1), last=nn.Linear(8, 4)), x(3, 5)


# ---------------------------------------------------------------------------------------------------- recurrent layers


@net
def recurrent_in_both_directions() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        hidden, (last, cell) = m.lstm(F.relu(m.first(x)))
        return m.last(F.relu(m.second(hidden))), m.summary(torch.cat([*last, *cell], -1))

    lstm = nn.LSTM(8, 6, num_layers=2, bidirectional=True, batch_first=True)
    parts = {"first": nn.Linear(3, 8), "second": nn.Linear(12, 10), "last": nn.Linear(10, 4)}
    return Net(forward, lstm=lstm, **parts, summary=nn.Linear(48, 4)), x(2, 5, 3)


@net
def simple_recurrent_nets() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        return m.last(m.relu(m.tanh(m.first(x))[0])[0])

    parts = {"tanh": nn.RNN(8, 6, bias=False), "relu": nn.RNN(6, 10, nonlinearity="relu", bidirectional=True)}
    return Net(forward, first=nn.Linear(3, 8), **parts, last=nn.Linear(20, 4)), x(5, 2, 3)


@net
def packed_sequences() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        packed = pack_padded_sequence(m.first(x), torch.tensor([5, 3]), batch_first=True)
        return m.last(pad_packed_sequence(m.gru(packed)[0], batch_first=True)[0])

    return Net(forward, first=nn.Linear(3, 8), gru=nn.GRU(8, 6), last=nn.Linear(6, 4)), x(2, 5, 3)


# ---------------------------------------------------------------------------------------------- windows, frequencies


@net
def unfolded_and_folded() -> Entry:
    """Attention within windows that overlap, summed where they do."""

    def forward(m: Any, x: Tensor) -> Any:
        x = F.relu(m.first(x))
        windows = F.unfold(m.value(x), 3, padding=1)
        b, _, n = windows.shape
        weights = torch.softmax(m.attend(x.mean((2, 3))), -1).view(b, 1, 9, 1)
        mixed = (windows.view(b, -1, 9, n) * weights).flatten(1, 2)
        return m.last(F.fold(mixed, x.shape[2:], 3, padding=1) + x)

    parts = {"first": nn.Conv2d(3, 6, 1), "value": nn.Conv2d(6, 6, 1), "last": nn.Conv2d(6, 4, 1)}
    return Net(forward, **parts, attend=nn.Linear(6, 9)), x(2, 3, 4, 5)


@net
def sliding_windows() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        windows = F.relu(m.first(x)).unfold(2, 3, 1).unfold(3, 3, 1)
        return m.last(windows.amax((-2, -1)))

    return Net(forward, first=nn.Conv2d(3, 8, 1), last=nn.Conv2d(8, 4, 1)), x(2, 3, 5, 6)


@net
def warped_features() -> Entry:
    """Features sampled where the network itself says."""

    def forward(m: Any, x: Tensor) -> Any:
        features = F.relu(m.first(x))
        places = torch.tanh(m.where(features)).permute(0, 2, 3, 1)
        return m.last(F.grid_sample(features, places, align_corners=True) - features)

    parts = {"first": nn.Conv2d(3, 6, 1), "where": nn.Conv2d(6, 2, 3, padding=1), "last": nn.Conv2d(6, 4, 1)}
    return Net(forward, **parts), x(2, 3, 4, 5)


@net
def distances_to_prototypes() -> Entry:
    def forward(m: Any, x: Tensor) -> Any:
        return m.last(torch.exp(-torch.cdist(m.second(F.relu(m.first(x))), m.prototypes)))

    parts = {"first": nn.Linear(6, 8), "second": nn.Linear(8, 6, bias=False), "last": nn.Linear(5, 4)}
    return Net(forward, **parts, prototypes=nn.Parameter(torch.empty(5, 6))), x(3, 6)


@net
def filtered_frequencies() -> Entry:
    """A filter of its own for every channel, in the frequencies of the image."""

    def forward(m: Any, x: Tensor) -> Any:
        x = F.gelu(m.first(x))
        spectrum = torch.fft.rfft2(x, norm="ortho") * torch.view_as_complex(m.filter)
        return m.last(torch.fft.irfft2(spectrum, s=x.shape[2:], norm="ortho") + x)

    parts = {"first": nn.Conv2d(3, 8, 1), "last": nn.Conv2d(8, 4, 1)}
    return Net(forward, **parts, filter=nn.Parameter(torch.empty(8, 4, 4, 2))), x(2, 3, 4, 6)
