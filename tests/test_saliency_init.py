"""Criteria for pruning at initialisation: SynFlow's conservation, GraSP's finite differences and its sign."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import topiarist
from topiarist.errors import InputError
from topiarist.saliency import GraSP, SynFlow
from topiarist.stats import Subject, collect, collect_gradients, start
from topiarist.stats.curvature import HessianGradient
from topiarist.testing.saliency import SaliencyContract


class TestSynFlow(SaliencyContract):
    @pytest.fixture
    def criterion(self):
        return SynFlow()


class TestGraSP(SaliencyContract):
    @pytest.fixture
    def criterion(self):
        return GraSP()


def mlp(*widths, bias=False, activation=nn.ReLU):
    torch.manual_seed(0)
    layers = [nn.Linear(a, b, bias=bias) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(*[m for layer in layers for m in (layer, activation())][:-1]).double()


def planner_of(model, x, structure="weight"):
    return topiarist.planning.Planner.of(model, x, topiarist.structure.resolve(structure), (), None)


def scores_of(criterion, model, x, data=None, loss=None, structure="weight"):
    return dict(planner_of(model, x, structure).candidates(criterion, data, loss, {}).scores)


# ------------------------------------------------------------------ SynFlow


def test_flow_is_conserved_by_neuron_and_by_layer():
    """F3: Σ in = Σ out for each hidden neuron, and Σ per layer is R = 1ᵀ Π |W| 1."""
    net, x = mlp(5, 7, 6, 3), torch.randn(2, 5).double()
    scores = scores_of(SynFlow(), net, x)
    first, second, third = (scores[f"{i}.weight"].view(net[i].weight.shape) for i in (0, 2, 4))
    torch.testing.assert_close(first.sum(1), second.sum(0), rtol=1e-10, atol=0)
    torch.testing.assert_close(second.sum(1), third.sum(0), rtol=1e-10, atol=0)
    total = (net[4].weight.abs() @ net[2].weight.abs() @ net[0].weight.abs()).sum().item()
    assert [float(s.sum()) for s in scores.values()] == pytest.approx([total] * 3, rel=1e-10)
    ones = net.requires_grad_(True)(torch.ones(1, 5).double()).sum()  # with signs there is no such thing
    grads = torch.autograd.grad(ones, [*net.parameters()])
    sums = [(p * g).abs().sum().item() for p, g in zip(net.parameters(), grads, strict=True)]
    assert sums != pytest.approx([sums[0]] * 3, rel=1e-2)


def test_flow_takes_no_data_and_no_signs_and_leaves_the_model():
    net, x = mlp(5, 7, 3, bias=True), torch.randn(2, 5).double()
    negated = copy.deepcopy(net)
    with torch.no_grad():
        for p in negated.parameters():
            p.neg_()
    before = copy.deepcopy(net.state_dict())
    one, other, third = scores_of(SynFlow(), net, x), scores_of(SynFlow(), negated, x), scores_of(SynFlow(), net, 3 * x)
    assert all(torch.equal(one[n], other[n]) and torch.equal(one[n], third[n]) for n in one)
    assert all(torch.equal(before[n], t) for n, t in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_flow_in_single_precision_does_not_overflow():
    net = mlp(*[64] * 30).float()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(20)
    assert not torch.isfinite(abs_flow(net)).all()
    scores = scores_of(SynFlow(), net, torch.zeros(1, 64))
    assert all(bool(torch.isfinite(s).all() and (s > 0).all()) for s in scores.values())


def abs_flow(net):
    work = copy.deepcopy(net)
    for p in work.parameters():
        p.data.abs_()
    return work(torch.ones(1, 64))


def test_in_a_hundred_steps_no_layer_is_emptied_where_one_step_empties_some():
    """F3 (n = 1 against n = 100)."""
    torch.manual_seed(0)
    net, x = mlp(100, 300, 100, 10), torch.zeros(1, 100).double()
    options = {"saliency": "synflow", "schedule": "exponential", "budget": topiarist.Budget(sparsity=0.9985)}
    plans = {steps: topiarist.prune(net, x, steps=steps, **options).plan for steps in (1, 100)}
    left = {steps: min(int((~gone).sum()) for gone in plan.removed.values()) for steps, plan in plans.items()}
    assert left[1] == 0 < left[100]


def test_masked_weights_have_no_flow_and_tokens_stay():
    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.fc = nn.Embedding(5, 4), nn.Linear(4, 3)

        def forward(self, tokens):
            return self.fc(self.table(tokens).mean(1))

    torch.manual_seed(0)
    net = Words()
    net.fc.weight.data[0, 1] = 0
    scores = scores_of(SynFlow(), net, torch.tensor([[1, 2], [3, 4]]))["fc.weight"].view(3, 4)
    assert float(scores[0, 1]) == 0
    table = net.table.weight.detach().abs()[[1, 2]].mean(0).double()
    torch.testing.assert_close(scores, net.fc.weight.detach().abs().double() * table, rtol=1e-6, atol=0)


def test_flow_without_example_inputs_is_refused():
    with pytest.raises(InputError, match="example inputs"):
        start({"flow"}, Subject(nn.Linear(1, 1)))


# ------------------------------------------------------------------ GraSP


@pytest.fixture
def net():
    return mlp(4, 6, 5, 3, bias=True, activation=nn.Tanh)


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 4, generator=generator, dtype=torch.float64), torch.arange(n) % 3) for n in (5, 5)]


NAMES = ("0.weight", "2.weight", "4.weight")


def gradient(net, data, temperature):
    found = collect_gradients(net, data, lambda out, y: F.cross_entropy(out / temperature, y))
    return torch.cat([found[n].flatten() for n in NAMES])


def moved(net, by):
    work, start = copy.deepcopy(net), 0
    for name in NAMES:
        p = work.get_parameter(name)
        p.data += by[start : start + p.numel()].view(p.shape)
        start += p.numel()
    return work


@pytest.mark.parametrize("temperature", [1.0, 200.0])
def test_hessian_times_gradient_is_a_finite_difference(net, data, temperature):
    """(g(θ + εv) − g(θ − εv)) / 2ε with v = g: 1e-4 relative."""
    units = planner_of(net, data[0][0]).units
    found = start({HessianGradient(temperature)}, Subject(net, units))[HessianGradient(temperature)]
    collect([found], Subject(net, units), data, F.cross_entropy)
    v = gradient(net, data, temperature)
    step = 1e-4 / float(v.norm())
    expected = (
        gradient(moved(net, step * v), data, temperature) - gradient(moved(net, -step * v), data, temperature)
    ) / (2 * step)
    product = torch.cat([found.values[n].flatten() for n in NAMES])
    torch.testing.assert_close(product, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))
    assert set(found.values) == set(NAMES)


def test_removing_the_largest_s_raises_the_gradients_norm_most(net, data):
    """Sign convention: for δ = −ε θ_q, (‖g‖² after − before) / 2ε is S_q, which is minus the score."""
    scores = scores_of(GraSP(temperature=1.0), net, data[0][0], data, F.cross_entropy)
    flat, theta = (
        torch.cat([scores[n] for n in NAMES]),
        torch.cat([net.get_parameter(n).detach().flatten() for n in NAMES]),
    )
    base, step = gradient(net, data, 1.0).square().sum(), 1e-5
    for q in flat.abs().topk(3).indices.tolist():
        by = torch.zeros_like(theta)
        by[q] = -step * theta[q]
        change = (gradient(moved(net, by), data, 1.0).square().sum() - base) / (2 * step)
        assert float(change) == pytest.approx(-float(flat[q]), rel=1e-3)


def test_a_loss_that_is_linear_in_the_weights_has_no_score(data):
    net = nn.Linear(4, 3).double()
    scores = scores_of(GraSP(), net, data[0][0], data, lambda out, y: out.gather(1, y[:, None]).mean())
    assert float(scores["weight"].abs().max()) == 0
    with pytest.raises(InputError, match="temperature"):
        HessianGradient(0.0)


def test_a_channel_has_the_sum_of_its_weights(net, data):
    """To first order, removing the channel is removing its weights; its biases count as well."""
    found = scores_of(GraSP(1.0), net, data[0][0], data, F.cross_entropy, "channel")["0.weight:0"]
    parameters = dict(net.named_parameters())
    out = [F.cross_entropy(net(x), y) for x, y in data]
    leaves = [parameters[n] for n in ("0.weight", "0.bias", "2.weight", "2.bias", "4.weight")]
    g = torch.autograd.grad(sum(out) / 2, leaves, create_graph=True)
    hg = torch.autograd.grad(sum((a * a.detach()).sum() for a in g), leaves)
    expected = (leaves[0] * hg[0]).sum(1) + leaves[1] * hg[1] + (leaves[2] * hg[2]).sum(0)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-8, atol=1e-14)


def test_conservation_catches_a_flow_with_signs(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "abs_", lambda self: self)
    with pytest.raises(AssertionError):
        test_flow_is_conserved_by_neuron_and_by_layer()


def test_the_sign_check_catches_the_wrong_end(net, data, monkeypatch):
    right = GraSP.__call__
    monkeypatch.setattr(GraSP, "__call__", lambda self, slices: -right(self, slices))
    with pytest.raises(AssertionError):
        test_removing_the_largest_s_raises_the_gradients_norm_most(net, data)
