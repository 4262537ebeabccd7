"""Criteria of activations: what consumers are multiplied by, against NumPy loops over hooked inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import topiarist
from topiarist.errors import InputError
from topiarist.planning import Planner
from topiarist.saliency import Activation, APoZ, resolve
from topiarist.stats.unit_inputs import Activations, Covariance, UnitCovariance
from topiarist.structure import Channel, Head
from topiarist.testing.saliency import SaliencyContract


class OfActivations(SaliencyContract):
    def stats(self, need, there, generator):
        return Activations(*torch.rand(4, there.units.num, generator=generator, dtype=torch.float64))


class TestMean(OfActivations):
    @pytest.fixture
    def criterion(self):
        return Activation("mean")


class TestVariance(OfActivations):
    @pytest.fixture
    def criterion(self):
        return Activation("variance")


class TestAPoZ(OfActivations):
    @pytest.fixture
    def criterion(self):
        return APoZ(0.1)


def scores(model, data, criterion, structure=None):
    structure = structure or Channel()
    planner = Planner.of(model, data[0], structure, (), None)
    return dict(planner.candidates(resolve(criterion), data, None, {}).scores)


class Flattened(nn.Module):
    """Units seen through a norm, a rectifier and a flatten that gives each of them four features."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Linear(12, 2)

    def forward(self, x):
        return self.fc(torch.relu(self.norm(self.conv(x))).flatten(1))


@pytest.fixture
def flattened():
    torch.manual_seed(0)
    model = Flattened().double()
    with torch.no_grad():
        model(torch.randn(32, 1, 4, 4, dtype=torch.float64))
    return model.eval(), [torch.randn(n, 1, 4, 4, dtype=torch.float64) for n in (5, 1, 7)]


def hooked(model, data):
    """(num units, observations) of what goes into ``fc``."""
    seen = []
    handle = model.fc.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    for x in data:
        model(x)
    handle.remove()
    return torch.cat(seen).view(-1, 3, 4).movedim(1, 0).reshape(3, -1).numpy()


@pytest.mark.parametrize(("criterion", "loop"), [
    (Activation("mean"), lambda z: z.mean(1)),
    (Activation("magnitude"), lambda z: np.abs(z).mean(1)),
    (Activation("variance"), lambda z: z.var(1)),
    (APoZ(), lambda z: np.array([sum(v != 0 for v in row) / len(row) for row in z])),
    (APoZ(0.3), lambda z: (np.abs(z) > 0.3).mean(1)),
])  # fmt: skip
def test_like_a_loop_over_what_goes_in(flattened, criterion, loop):
    model, data = flattened
    found = scores(model, data, criterion)["conv.weight:0"]
    np.testing.assert_allclose(found, loop(hooked(model, data)), rtol=1e-12)
    before = torch.cat([model.norm(model.conv(x)) for x in data]).detach().movedim(1, 0).reshape(3, -1).numpy()
    assert not np.allclose(found, loop(before)), "activations before the rectifier must not pass"


def test_covariance_of_units_is_that_of_numpy(flattened):
    model, data = flattened
    units = Planner.of(model, data[0], Channel(), (), None)
    need = UnitCovariance()

    class Needs:
        needs = frozenset({need})

    found = units.collect(Needs(), data, None)[need].of(units.units[0])
    z = hooked(model, data)
    np.testing.assert_allclose(found.covariance, np.cov(z, bias=True), rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(found.mean, z.mean(1), rtol=1e-12)
    assert isinstance(found, Covariance)
    assert found.num == z.shape[1]


def gates():
    """Biases −10, 0, +10 on symmetric inputs: always, half of the time, and never zero."""
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        model[0].bias.copy_(torch.tensor([-10.0, 0.0, 10.0]))
    half = torch.randn(50, 2, dtype=torch.float64)
    return model, torch.cat([half, -half])


def test_dead_half_and_live_units():
    torch.manual_seed(0)
    model, x = gates()
    assert scores(model, [x], APoZ())["0.weight:0"].tolist() == [0.0, 0.5, 1.0]
    plan = topiarist.plan(
        model, x, structure="channel", saliency="apoz", data=[x], budget=topiarist.Budget(sparsity=1 / 3)
    )
    assert plan.removed["0.weight:0"].tolist() == [True, False, False]
    assert torch.equal(topiarist.shrink(model, plan, x)(x), model(x))


def test_smooth_nonlinearities_need_a_threshold():
    torch.manual_seed(0)
    model, x = gates()
    model[1] = nn.GELU()
    assert scores(model, [x], APoZ(1e-3))["0.weight:0"].tolist()[0] == 0.0
    with pytest.raises(InputError, match="0 or more"):
        APoZ(-1.0)


def test_heads_and_keys_have_activations():
    torch.manual_seed(0)

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_heads = 2
            self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))

        def forward(self, x):
            b, t, _ = x.shape
            q, k, v = (m(x).view(b, t, self.num_heads, -1).transpose(1, 2) for m in (self.q, self.k, self.v))
            y = (q @ k.mT).softmax(-1) @ v
            return self.o(y.transpose(1, 2).reshape(b, t, -1))

    model, x = Attention(), torch.randn(3, 4, 8)
    found = scores(model, [x], "activation", Channel())
    assert {len(v) for v in found.values()} == {4}
    seen = [s for name, s in found.items() if name.startswith(("q.", "k."))]
    expected = torch.stack([m(x).detach().abs().view(-1, 2, 4).double().mean((0, 1)) for m in (model.q, model.k)])
    torch.testing.assert_close(seen[0], expected.mean(0), rtol=1e-6, atol=0)
    heads = scores(model, [x], "activation", Head())
    seen = []
    handle = model.o.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    model(x)
    handle.remove()
    (score,) = heads.values()
    torch.testing.assert_close(score, seen[0].double().abs().view(-1, 2, 4).mean((0, 2)), rtol=1e-6, atol=0)


def test_groups_of_channels_have_activations():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 1), nn.ReLU(), nn.Conv2d(6, 6, 1, groups=3), nn.ReLU(), nn.Flatten())
    model.append(nn.Linear(24, 1))
    x = torch.randn(5, 1, 2, 2)
    found, planner = scores(model, [x], "activation"), Planner.of(model, x, Channel(), (), None)
    hidden = [model[1](model[0](x)), model[:4](x)]
    for units in planner.units:
        unit = {m.tensor: m.unit for m in units.members}
        z = hidden["5.weight" in unit].detach().double()
        members = unit["0.weight"] if "5.weight" not in unit else unit["2.weight"]
        loop = torch.stack([z[:, members == u].abs().mean() for u in range(units.num)])
        torch.testing.assert_close(found[units.name], loop, rtol=1e-6, atol=0)


def test_data_are_asked_for(flattened):
    model, data = flattened
    with pytest.raises(InputError, match="pass data"):
        topiarist.plan(
            model, data[0], structure="channel", saliency="activation", budget=topiarist.Budget(sparsity=0.3)
        )


@pytest.mark.parametrize("word", ["activation", "activation-mean", "activation-variance", "apoz"])
def test_words(word):
    assert resolve(word).needs
