"""What the tests of methods share: tiny data that can be learned, and networks trained on it."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from topiarist.data.loader import Batches
from topiarist.measure import evaluate
from topiarist.recover import Checkpoints, TrainingRecipe, train


def make_mlp(*widths, bias=False):
    """Linear layers with ReLU between, in double precision."""
    layers = [nn.Linear(a, b, bias=bias) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(*[m for layer in layers for m in (layer, nn.ReLU())][:-1]).double()


@pytest.fixture
def mlp():
    return make_mlp


@pytest.fixture
def blobs():
    """Three classes around the corners of a simplex, in eight dimensions of which five are noise: four batches."""
    generator = torch.Generator().manual_seed(3)
    y = torch.arange(120) % 3
    x = torch.randn(120, 8, generator=generator, dtype=torch.float64)
    x[:, :3] += 3 * F.one_hot(y, 3)
    return [(x[i : i + 30], y[i : i + 30]) for i in range(0, 120, 30)]


@pytest.fixture
def recipe():
    return TrainingRecipe(epochs=10, lr=0.05)


@pytest.fixture
def trained(blobs, recipe):
    """A trained MLP, and the checkpoints of before."""
    model, checkpoints = make_mlp(8, 16, 12, 3, bias=True), Checkpoints(steps=[0])
    train(model, blobs, F.cross_entropy, recipe, checkpoints=checkpoints)
    return model, checkpoints


@pytest.fixture
def accuracy(blobs):
    """The fraction of the blobs that a model tells apart."""

    def of(model):
        with torch.no_grad():
            return float(torch.cat([(model(x).argmax(1) == y).double() for x, y in blobs]).mean())

    return of


def _told(data: Batches, recipe: TrainingRecipe) -> dict[str, object]:
    """What the command line tells every method."""
    return {
        "data": data,
        "loss": F.cross_entropy,
        "evaluate": lambda model: evaluate(model, data, F.cross_entropy),
        "recipe": recipe,
    }


@pytest.fixture
def points() -> SimpleNamespace:
    """Four clusters in eight dimensions, and an MLP that tells them apart."""
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(256) % 4
    centres = 2 * torch.randn(4, 8, generator=generator)
    x = centres[y] + torch.randn(256, 8, generator=generator)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4))
    data, recipe = Batches(x, y, 32, shuffle=True), TrainingRecipe(epochs=4, lr=0.05)
    train(net, data, F.cross_entropy, recipe)
    return SimpleNamespace(net=net, x=x[:1], inputs=x, targets=y, data=data, recipe=recipe, told=_told(data, recipe))


@pytest.fixture
def images() -> SimpleNamespace:
    """Bars at three places of an 8 × 8 image, and a small convolutional net with batch norms."""
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(96) % 3
    x = torch.randn(96, 1, 8, 8, generator=generator)
    x[torch.arange(96), 0, 2 * y + 1] += 2.0
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * 64, 3),
    )  # fmt: skip
    data, recipe = Batches(x, y, 32, shuffle=True), TrainingRecipe(epochs=3, lr=0.02)
    train(net, data, F.cross_entropy, recipe)
    return SimpleNamespace(net=net, x=x[:1], inputs=x, targets=y, data=data, recipe=recipe, told=_told(data, recipe))
