"""What the tests of methods share: tiny data that can be learned, and networks trained on it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from topiarist.data.loader import Batches
from topiarist.measure import evaluate
from topiarist.recover import TrainingRecipe, train


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
