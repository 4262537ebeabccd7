"""Gradients against finite differences, and models left as they were, bit for bit."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from topiarist.data import Batches
from topiarist.errors import InputError
from topiarist.inputs import as_arguments, as_batch, call
from topiarist.stats import collect_gradients, preserved


class Net(nn.Module):
    """Normalization, dropout, a tied and an unused parameter."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(3, 4)
        self.tied = nn.Linear(3, 4, bias=False)
        self.tied.weight = self.fc.weight
        self.unused = nn.Parameter(torch.ones(2))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x, scale=1.0):
        self.seen += 1
        x = self.drop(torch.relu(self.norm(self.conv(x)))).mean((2, 3))
        return (self.fc(x) + torch.tanh(self.tied(x))) * scale


@pytest.fixture
def net():
    torch.manual_seed(0)
    model = Net().double().train()
    with torch.no_grad():
        model(torch.randn(8, 1, 4, 4, dtype=torch.float64))
    return model


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 1, 4, 4, generator=generator, dtype=torch.float64), torch.arange(n) % 4) for n in (3, 5)]


def snapshot(model):
    return (
        {n: (id(t), t.clone()) for n, t in model.state_dict(keep_vars=True).items()},
        {n: (p.requires_grad, p.grad, None if p.grad is None else p.grad.clone()) for n, p in model.named_parameters()},
        {n: m.training for n, m in model.named_modules()},
        (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()),
    )


def same(one, other):
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_like_finite_differences(net, data):
    found = collect_gradients(net, data, F.cross_entropy)
    reference, step = copy.deepcopy(net).eval(), 1e-6
    assert list(found) == [name for name, _ in net.named_parameters()]
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            flat = parameter.view(-1)
            expected = torch.empty_like(flat)
            for i, value in enumerate(flat.tolist()):
                losses = []
                for shifted in (value + step, value - step):
                    flat[i] = shifted
                    losses.append(sum(F.cross_entropy(reference(x), y) for x, y in data) / 2)
                flat[i] = value
                expected[i] = (losses[0] - losses[1]) / (2 * step)
            torch.testing.assert_close(found[name].view(-1), expected, rtol=1e-6, atol=1e-9)
    assert found["conv.weight"].abs().sum() > 0
    assert found["unused"].tolist() == [0, 0]


def noisy(outputs, targets):
    random.shuffle([1, 2])
    np.random.rand()
    torch.rand(1)
    return F.cross_entropy(outputs, targets)


@pytest.mark.parametrize("frozen", [False, True])
def test_the_model_is_left_as_it_was(net, data, frozen):
    net.drop.eval()
    net.conv.requires_grad_(not frozen)
    F.cross_entropy(net(data[0][0]), data[0][1]).backward()
    before = snapshot(net)
    with torch.no_grad():
        found = collect_gradients(net, data, noisy)
    assert same(snapshot(net), before)
    assert found["conv.weight"].abs().sum() > 0
    assert not any(g.requires_grad for g in found.values())


def test_the_model_is_left_as_it_was_after_an_error(net, data):
    def failing(outputs, targets):
        noisy(outputs, targets).backward()
        raise RuntimeError("the loss fails")

    before = snapshot(net)
    with pytest.raises(RuntimeError, match="the loss fails"):
        collect_gradients(net, data, failing)
    assert same(snapshot(net), before)


def test_preserved_puts_back_buffers_that_were_changed_replaced_added_or_removed(net):
    before = snapshot(net)
    with preserved(net):
        net.norm.running_mean.add_(1)
        net.norm.running_var = torch.zeros(3)
        net.register_buffer("new", torch.zeros(1))
        del net.seen
        net.eval()
    assert same(snapshot(net), before)


def test_the_snapshot_sees_a_single_change(net):
    before = snapshot(net)
    for change in (lambda: net.eval(), lambda: torch.rand(1), lambda: net.norm.running_mean.add_(1e-9)):
        change()
        after = snapshot(net)
        assert not same(after, before)
        before = after


def test_some_batches_only(net, data):
    drawn = []

    def loader():
        for number, batch in enumerate(data * 2):
            drawn.append(number)
            yield batch

    found = collect_gradients(net, loader(), F.cross_entropy, num_batches=1)
    assert drawn == [0]
    assert same(found, collect_gradients(net, data[:1], F.cross_entropy))
    assert not same(found, collect_gradients(net, data, F.cross_entropy))


@pytest.mark.parametrize("form", [lambda x: (x, 2.0), lambda x: [x, 2.0], lambda x: {"x": x, "scale": 2.0}])
def test_inputs_in_every_form(net, data, form):
    found = collect_gradients(net, [(form(x), y) for x, y in data], F.cross_entropy)
    assert same(found, collect_gradients(net, data, lambda out, y: F.cross_entropy(2.0 * out, y)))


def test_half_precision_is_summed_in_single():
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    data = [(torch.full((1, 1), v, dtype=torch.bfloat16), None) for v in (256.0, 1.0)]
    found = collect_gradients(model, data, lambda out, y: out.sum())["weight"]
    assert found.dtype == torch.float32
    assert found.item() == 128.5


@pytest.mark.parametrize(("data", "loss", "message"), [
    ([], F.cross_entropy, "no batch"),
    ([torch.zeros(3, 1, 4, 4)], F.cross_entropy, "pair"),
    ([(1, 2, 3)], F.cross_entropy, "pair.*of 3"),
    ([(torch.zeros(1, 1, 4, 4).double(), None)], lambda out, y: out, "one number"),
    ([(torch.zeros(1, 1, 4, 4).double(), None)], lambda out, y: out.detach().sum(), "depends on"),
    ([(torch.zeros(1, 1, 4, 4).double(), None)], lambda out, y: out.sum() * float("inf"), "batch 1 is"),
])  # fmt: skip
def test_data_and_losses_that_cannot_be_used_are_refused(net, data, loss, message):
    before = snapshot(net)
    with pytest.raises(InputError, match=message):
        collect_gradients(net, data, loss)
    assert same(snapshot(net), before)


def test_no_batches_asked_for_is_refused(net, data):
    with pytest.raises(InputError, match="0 batches"):
        collect_gradients(net, data, F.cross_entropy, num_batches=0)


def test_arguments():
    x = torch.ones(1)
    assert as_arguments(x) == ((x,), {})
    assert as_arguments([1, 2]) == ((1, 2), {})
    assert as_arguments({"a": 1}) == ((), {"a": 1})
    with pytest.raises(InputError, match="key 3"):
        as_arguments({3: 1})
    assert call(lambda *args, **kwargs: (args, kwargs), (1, 2)) == ((1, 2), {})
    assert as_batch(("x", None)) == ("x", None)


def test_a_shuffled_loader_gives_the_same_gradients_each_time(net):
    inputs, targets = torch.randn(7, 1, 4, 4, dtype=torch.float64), torch.arange(7) % 4
    loader = Batches(inputs, targets, 2, shuffle=True)
    first, second = (collect_gradients(net, loader, F.cross_entropy, num_batches=2) for _ in range(2))
    assert same(first, second)
