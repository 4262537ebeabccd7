"""The attack stays in its ball and its box and raises the loss; vulnerability is the mean distortion of features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from topiarist.errors import InputError
from topiarist.methods.attack import PGD, features_of, robustness, vulnerability
from topiarist.recover import TrainingRecipe, train


@pytest.fixture
def data():
    torch.manual_seed(0)
    x = torch.rand(256, 6, dtype=torch.float64)
    return [(x, (x @ torch.tensor([[1.0, -1, 1, -1, 1, -1], [-1, 1, -1, 1, -1, 1]]).double().T).argmax(1))]


@pytest.fixture
def net(data):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    model.double()
    train(model, data, F.cross_entropy, TrainingRecipe(epochs=30, lr=0.1))
    return model.eval()


@pytest.mark.parametrize("epsilon", [0.0, 0.05, 0.3])
def test_the_attack_stays_in_its_ball_and_its_box(net, data, epsilon):
    (x, y), attack = data[0], PGD(epsilon, 0.1, 5, bounds=(0, 1))
    moved = attack(net, x, y, F.cross_entropy)
    assert float((moved - x).abs().max()) <= epsilon + 1e-12
    assert float(moved.min()) >= 0
    assert float(moved.max()) <= 1
    if epsilon == 0:
        assert torch.equal(moved, x)


def test_without_projection_it_would_leave(net, data):
    (x, y), attack = data[0], PGD(0.05, 0.1, 5, bounds=(-9, 9))
    assert float(attack(net, x, y, F.cross_entropy).min()) < 0


def test_the_loss_rises(net, data):
    """On 99 of 100 inputs of a trained model, and falls when the sign is turned."""
    (x, y), attack = data[0], PGD(0.1, 0.02, 10, bounds=(0, 1))
    before = F.cross_entropy(net(x), y, reduction="none")
    moved = attack(net, x, y, F.cross_entropy)
    assert float((F.cross_entropy(net(moved), y, reduction="none") >= before).double().mean()) >= 0.99
    turned = attack(net, x, y, lambda out, y: -F.cross_entropy(out, y))
    assert float((F.cross_entropy(net(turned), y, reduction="none") >= before).double().mean()) < 0.01


def test_one_step_is_the_formula():
    """x̃ = x + η sign(w) for a linear loss, by hand."""
    layer = nn.Linear(3, 1, bias=False)
    w = np.array([[0.5, -2.0, 0.1]])
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(w))
    x = np.full((2, 3), 0.5)
    attack = PGD(0.2, 0.15, 1, bounds=(0, 1), random_start=False)
    moved = attack(layer, torch.tensor(x, dtype=torch.float32), None, lambda out, _: out.sum())
    np.testing.assert_allclose(moved.numpy(), x + 0.15 * np.sign(w), rtol=1e-6)
    again = PGD(0.2, 0.15, 9, bounds=(0, 1), random_start=False)
    moved = again(layer, torch.tensor(x, dtype=torch.float32), None, lambda out, _: out.sum())
    np.testing.assert_allclose(moved.numpy(), x + 0.2 * np.sign(w), rtol=1e-6)


def test_the_model_stays_as_it_is(net, data):
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    PGD(0.1, 0.02, 3)(net, *data[0], F.cross_entropy)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    robustness(net, data, PGD(0.1, 0.02, 2), F.cross_entropy)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_what_is_no_float_cannot_be_attacked(net):
    with pytest.raises(InputError, match="floats"):
        PGD()(net, torch.zeros(2, 6, dtype=torch.long), torch.zeros(2), F.cross_entropy)
    with pytest.raises(InputError, match="ε"):
        PGD(epsilon=-1)


def test_vulnerability_is_the_mean_over_units_then_layers(net, data):
    """A NumPy loop over the features of two layers, with a mask that leaves out half of the first."""
    x = data[0][0][:4]
    moved = x + 0.1
    half = torch.arange(16) < 8
    with torch.no_grad(), features_of(net, lambda name, f: f * half if name == "3" else f) as seen:
        net(torch.cat((x, moved)))
        found = float(vulnerability(seen))
    with torch.no_grad():
        hidden = [[net[:3](v), net[:5](v)] for v in (x, moved)]
    apart = [np.abs((a - b).double().numpy()) for a, b in zip(*hidden, strict=True)]
    apart[0][:, 8:] = 0
    total = 0.0
    for layer in apart:
        total += sum(layer[n, k] for n in range(4) for k in range(layer.shape[1])) / layer.size
    assert found == pytest.approx(total / 2, rel=1e-6)
    assert set(seen) == {"3", "5"}  # not the input itself


def test_robustness_counts(net, data):
    found = robustness(net, data, PGD(0.3, 0.05, 10, bounds=(0, 1)), F.cross_entropy)
    still = robustness(net, data, PGD(0.0, 0.05, 2), F.cross_entropy)
    exact = float((net(data[0][0]).argmax(1) == data[0][1]).double().mean())
    assert still.clean == still.attack == found.clean == exact
    assert still.vulnerability == pytest.approx(0, abs=1e-7)
    assert found.attack < found.clean - 0.2
    with pytest.raises(InputError, match="no batch"):
        robustness(net, [], PGD(), F.cross_entropy)
