"""Squares of examples' gradients added up: by products of squares where layers allow it, as row by row."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from topiarist.stats import row_squares as room
from topiarist.stats.examples import rows
from topiarist.stats.row_squares import row_squares
from topiarist.stats.statistic import Batch, Subject


def batch_of(model: nn.Module, x: Tensor) -> Batch:
    subject = Subject(model.double().eval())
    outputs = model(x)
    return Batch(subject, x, None, outputs, outputs.sum(), None, len(x), 1, 0, None, True)


class Tied(nn.Module):
    """One weight in two layers; ``by_hand``: in one layer and in a product of its own."""

    def __init__(self, by_hand: bool) -> None:
        super().__init__()
        self.one, self.two, self.by_hand = nn.Linear(6, 6), nn.Linear(6, 6), by_hand
        if not by_hand:
            self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.one(x))
        return h @ self.one.weight.T if self.by_hand else self.two(h)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.one(torch.tanh(self.one(x)))


class Mixing(nn.Module):
    """Examples that see each other: alone, one gives something else."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x)
        return h - h.mean(0)


class Tokens(nn.Module):
    """Tokens of all examples in a row, or the tokens first, as many as there are examples."""

    def __init__(self, in_a_row: bool) -> None:
        super().__init__()
        self.one, self.in_a_row = nn.Linear(6, 3), in_a_row

    def forward(self, x: Tensor) -> Tensor:
        if self.in_a_row:
            return torch.tanh(self.one(x.flatten(0, 1))).view(len(x), -1)
        return torch.tanh(self.one(x.transpose(0, 1))).transpose(0, 1).flatten(1)


IMAGES, TOKENS, VECTORS = (5, 4, 7, 7), (5, 3, 6), (5, 6)
NETS = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 3, bias=False)), VECTORS),
    "tokens": (lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3), nn.Flatten()), TOKENS),
    "convolution": (
        lambda: nn.Sequential(
            nn.Conv2d(4, 6, 3, 2, (1, 0), groups=2), nn.ReLU(inplace=True), nn.BatchNorm2d(6),
            nn.Conv2d(6, 4, 2, dilation=(1, 2)), nn.Flatten(),
        ),
        IMAGES,
    ),
    "one dimension": (lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(16, 2)), TOKENS),
    "tied": (lambda: Tied(by_hand=False), VECTORS),
    "tied by hand": (lambda: Tied(by_hand=True), VECTORS),
    "twice": (Twice, VECTORS),
    "tokens in a row": (lambda: Tokens(in_a_row=True), TOKENS),
    "tokens first": (lambda: Tokens(in_a_row=False), (5, 5, 6)),
    "reflected": (lambda: nn.Sequential(nn.Conv2d(4, 2, 3, padding=1, padding_mode="reflect"), nn.Flatten()), IMAGES),
    "same": (lambda: nn.Sequential(nn.Conv2d(4, 2, 3, padding="same"), nn.Flatten()), IMAGES),
}  # fmt: skip


def both(name: str, rank: int = 3) -> tuple[dict[str, Tensor], dict[str, Tensor], Batch, Tensor]:
    torch.manual_seed(0)
    make, shape = NETS[name]
    batch = batch_of(make(), torch.randn(shape, dtype=torch.float64))
    cotangents = torch.randn(len(batch.outputs), rank, batch.outputs.shape[1], dtype=torch.float64)
    one_by_one = [{n: g.square().sum((0, 1)) for n, g in chunk.items()} for chunk in rows(batch, cotangents)]
    return row_squares(batch, cotangents), one_by_one[0], batch, cotangents


@pytest.mark.parametrize("name", NETS)
def test_sums_are_those_of_single_rows(name: str) -> None:
    found, expected, _, _ = both(name)
    assert found.keys() == expected.keys()
    for parameter in expected:
        torch.testing.assert_close(found[parameter], expected[parameter], rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "left"),
    [
        ("linear", []),
        ("convolution", ["2.weight", "2.bias"]),
        ("tokens", ["1.weight", "1.bias"]),
        ("one dimension", []),
    ],
)
def test_rows_are_for_the_parameters_that_are_left(name: str, left: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    _, expected, batch, cotangents = both(name)
    asked: list[str] = []
    monkeypatch.setattr(room, "rows", lambda batch, v, names: asked.extend(names) or iter(()))
    found = row_squares(batch, cotangents)
    assert asked == left
    assert sorted([*found, *left]) == sorted(expected)


@pytest.mark.parametrize("name", ["tied by hand", "twice"])
def test_a_weight_used_elsewhere_would_be_wrong(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sabotage: nobody looks whether the gradient is all from one run of the layer."""
    monkeypatch.setattr(room, "_is_alone", lambda *_: True)
    found, expected, _, _ = both(name)
    differs = not torch.allclose(found["one.weight"], expected["one.weight"], rtol=1e-6)
    assert differs == (name == "tied by hand")  # a layer that runs twice is left out by its count


@pytest.mark.parametrize("name", ["tokens in a row", "tokens first"])
def test_rows_that_are_no_examples_would_be_wrong(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_by_example", lambda layers, *_: layers)  # sabotage
    found, expected, _, _ = both(name)
    assert not torch.allclose(found["one.weight"], expected["one.weight"], rtol=1e-6)


def test_examples_that_see_each_other_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    batch = batch_of(Mixing(), torch.randn(VECTORS, dtype=torch.float64))
    cotangents = torch.randn(5, 1, 3, dtype=torch.float64)
    alone = row_squares(batch, cotangents)
    assert float(alone["one.weight"].abs().max()) == 0  # an example minus itself
    monkeypatch.setattr(room, "_by_example", lambda layers, *_: layers)  # sabotage
    assert float(row_squares(batch, cotangents)["one.weight"].abs().max()) > 0


def test_nothing_stays_on_the_model() -> None:
    _, _, batch, cotangents = both("convolution")
    row_squares(batch, cotangents)
    assert not any(m._forward_hooks for m in batch.subject.model.modules())
    assert torch.equal(F.relu(batch.outputs), F.relu(batch.subject.model(batch.inputs)))
