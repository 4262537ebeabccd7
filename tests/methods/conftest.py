"""What the tests of methods share: a classifier of three blobs, data, and how it is trained."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

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
