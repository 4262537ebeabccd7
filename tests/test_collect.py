"""One pass for everything that is asked of the data; and criteria that change what stays."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import topiarist
from topiarist.errors import InputError
from topiarist.stats import Statistic, Subject, collect, collect_gradients, start


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 4, generator=generator, dtype=torch.float64), torch.arange(n) % 3) for n in (3, 5)]


class Counting(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net, self.calls = net, 0

    def forward(self, x):
        self.calls += 1
        return self.net(x)


def test_everything_is_collected_in_one_pass(net, data):
    planner_model = Counting(net)
    units = topiarist.planning.Planner.of(
        planner_model, data[0][0], topiarist.structure.resolve("weight"), (), None
    ).units
    planner_model.calls = 0
    subject = Subject(planner_model, units)
    found = start({"gradients", "activations", "gram"}, subject)
    collect(found.values(), subject, data, F.cross_entropy)
    assert planner_model.calls == len(data)
    expected = collect_gradients(planner_model, data, F.cross_entropy)
    assert all(torch.equal(found["gradients"].values[n], g) for n, g in expected.items())
    moments = found["activations"].of(units[0])["net.0.weight"]
    torch.testing.assert_close(moments.mean[0], torch.cat([x for x, _ in data]).mean(0), rtol=1e-12, atol=1e-15)
    x = torch.cat([x for x, _ in data])
    torch.testing.assert_close(found["gram"].of(units[0])["net.0.weight"].matrix[0], x.T @ x, rtol=1e-12, atol=0)


class TwoPasses(Statistic):
    num_passes = 2

    def __init__(self, subject):
        self.seen, self.ended = [], []

    def on_batch(self, batch):
        self.seen.append((batch.turn, batch.number, batch.size))

    def end(self, turn):
        self.ended.append(turn)

    def of(self, units):
        return torch.ones(units.num)


class Own:
    needs = frozenset({TwoPasses, "gradients"})

    def __call__(self, slices):
        return slices.stats[TwoPasses] * slices.gradients[0].abs().sum(1)


def test_a_statistic_of_ones_own_and_several_passes(net, data):
    subject = Subject(net)
    found = start({TwoPasses}, subject)[TwoPasses]
    collect([found], subject, data, F.cross_entropy)
    assert found.seen == [(0, 1, 3), (0, 2, 5), (1, 1, 3), (1, 2, 5)]
    assert found.ended == [0, 1]
    plan = topiarist.plan(
        net, data[0][0], saliency=Own(), budget=topiarist.Budget(sparsity=0.5), data=data, loss=F.cross_entropy
    )
    assert plan.num_removed == 18  # of 35, a half rounded up


def test_words_that_are_none(net):
    with pytest.raises(InputError, match="gradients"):
        start({"gradient"}, Subject(net))
    with pytest.raises(InputError, match="word"):
        start({3}, Subject(net))


class Doubling:
    """Lowest weights go, and all others double."""

    needs = frozenset({"gradients"})

    def __call__(self, slices):
        return slices.weights[0].abs().sum(1)

    def compensate(self, weights, removed, stats):
        assert set(stats) == {"gradients"}
        self.removed = removed
        return {name: 2 * weights[name] for name in removed}


def test_a_criterion_changes_what_stays(net, data):
    options = {"data": data, "loss": F.cross_entropy, "budget": topiarist.Budget(sparsity=0.5)}
    criterion = Doubling()
    result = topiarist.prune(net, data[0][0], saliency=criterion, **options)
    plain = topiarist.prune(net, data[0][0], saliency="l1", **options)
    for name, weight in result.model.named_parameters():
        if name.endswith("weight"):
            assert torch.equal(weight, 2 * plain.model.get_parameter(name)), name
            assert bool((weight[criterion.removed[name]] == 0).all())
            assert bool(criterion.removed[name].any())
    twice = topiarist.prune(net, data[0][0], saliency=Doubling(), steps=2, schedule="linear", **options)
    assert torch.equal(twice.model[0].weight != 0, result.model[0].weight != 0)
    assert torch.equal(twice.model[0].weight, 2 * result.model[0].weight)


def test_compensation_that_is_not_finite_is_refused_and_nothing_is_masked(net, data):
    class Broken(Doubling):
        def compensate(self, weights, removed, stats):
            return {"0.weight": weights["0.weight"] * float("nan")}

    options = {"data": data, "loss": F.cross_entropy, "budget": topiarist.Budget(sparsity=0.5)}
    before = {n: p.clone() for n, p in net.named_parameters()}
    with pytest.raises(InputError, match=r"0\.weight"):
        topiarist.prune(net, data[0][0], saliency=Broken(), **options)
    assert all(torch.equal(before[n], p) for n, p in net.named_parameters())
