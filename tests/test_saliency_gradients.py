"""Criteria from gradients: against loops over examples, finite differences and the identities of their papers."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import topiarist
from topiarist.errors import InputError
from topiarist.mask.attach import masked
from topiarist.saliency import Fisher, Gradient, LeaveOut, Movement, Taylor, Taylor2016, TaylorWeight
from topiarist.stats import collect_gradients, record_movement
from topiarist.structure.base import parameters_of
from topiarist.structure.base import slices as cut
from topiarist.testing.saliency import SaliencyContract


class OfGates(SaliencyContract):
    def stats(self, need, there, generator):
        draws = torch.rand(3, 6, generator=generator, dtype=torch.float64)
        return dict(zip(("batch", "example", "magnitude"), draws, strict=True))


class TestTaylor(OfGates):
    @pytest.fixture(params=["batch", "example"])
    def criterion(self, request):
        return Taylor(per=request.param)


class TestTaylor2016(OfGates):
    @pytest.fixture(params=[True, False])
    def criterion(self, request):
        return Taylor2016(normalise=request.param)


class TestTaylorWeight(SaliencyContract):
    @pytest.fixture(params=[True, False])
    def criterion(self, request):
        return TaylorWeight(cross=request.param)


class TestFisher(SaliencyContract):
    @pytest.fixture(params=["batch", "example"])
    def criterion(self, request):
        return Fisher(per=request.param)


class TestLeaveOut(SaliencyContract):
    def stats(self, need, there, generator):
        return torch.randn(6, generator=generator, dtype=torch.float64)

    @pytest.fixture
    def criterion(self):
        return LeaveOut()


class TestMovement(SaliencyContract):
    @pytest.fixture
    def criterion(self):
        return Movement({})


class Net(nn.Module):
    """Units that one, two and several features of readers stand for: a shared stream, a flattened map, a depthwise
    convolution in between."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1)
        self.depth = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.conv2, self.conv3 = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(3 * 9, 5), nn.Linear(5, 3)

    def forward(self, x, gates=None):
        gates = {} if gates is None else gates
        x = torch.tanh(self.depth(torch.tanh(self.conv1(x))))
        if "conv1.weight:0" in gates:
            x = x * gates["conv1.weight:0"][..., None, None]
        x = torch.tanh(self.conv2(x) + self.conv3(x))
        if "conv2.weight:0" in gates:
            x = x * gates["conv2.weight:0"][..., None, None]
        x = torch.tanh(self.fc1(x.flatten(1)))
        return self.fc2(x * gates["fc1.weight:0"] if "fc1.weight:0" in gates else x)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().double()


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 2, 3, 3, generator=generator, dtype=torch.float64), torch.arange(n) % 3) for n in (4, 6)]


def units_of(model, x, structure="channel"):
    return topiarist.planning.Planner.of(model, x, topiarist.structure.resolve(structure), (), None)


def scores_of(criterion, model, data, structure="channel", loss=F.cross_entropy):
    planner = units_of(model, data[0][0], structure)
    return dict(planner.candidates(criterion, data, loss, {}).scores)


def gate_gradients(net, data, units):
    """∂ℓ_n/∂g_j by autograd through gates that the network multiplies by: (examples, units) per batch."""
    found = []
    for x, y in data:
        gates = torch.ones(len(x), units.num, dtype=torch.float64, requires_grad=True)
        loss = F.cross_entropy(net(x, {units.name: gates}), y, reduction="sum")
        found.append(torch.autograd.grad(loss, gates)[0])
    return found


@pytest.mark.parametrize("name", ["conv1.weight:0", "conv2.weight:0", "fc1.weight:0"])
def test_taylor_is_the_gradient_of_gates(net, data, name):
    units = next(u for u in units_of(net, data[0][0]).units if u.name == name)
    z = gate_gradients(net, data, units)
    expected = {
        "batch": torch.stack([g.mean(0).square() for g in z]).mean(0),
        "example": torch.cat(z).square().mean(0),
    }
    for per, value in expected.items():
        torch.testing.assert_close(scores_of(Taylor(per), net, data)[name], value, rtol=1e-10, atol=0)
    assert not torch.allclose(expected["batch"], expected["example"])


def test_gates_are_those_of_finite_differences(net, data):
    (x, y), name, step = data[0], "conv1.weight:0", 1e-5
    found = scores_of(Taylor(), net, data[:1])[name]
    for j in range(4):
        losses = []
        for sign in (1, -1):
            gates = torch.ones(1, 4, dtype=torch.float64)
            gates[0, j] += sign * step
            losses.append(F.cross_entropy(net(x, {name: gates}), y))
        assert ((losses[0] - losses[1]) / (2 * step)).item() ** 2 == pytest.approx(float(found[j]), rel=1e-7)


def test_taylor_2016_takes_the_magnitude_after_the_mean_over_positions_and_before_that_over_examples(data):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 3, 3), nn.Flatten()).double()
    theta = torch.zeros(4, dtype=torch.float64)
    for x, y in data:
        for n in range(len(x)):
            z = net[:2](x[n : n + 1]).detach().requires_grad_(True)
            F.cross_entropy(net[2:](z), y[n : n + 1]).backward()
            for c in range(4):
                theta[c] += abs(float((z * z.grad).detach()[0, c].mean())) / 10
    found = scores_of(Taylor2016(normalise=False), net, data)["0.weight:0"]
    torch.testing.assert_close(found, theta, rtol=1e-10, atol=0)
    normalised = scores_of(Taylor2016(), net, data)["0.weight:0"]
    torch.testing.assert_close(normalised, theta / theta.norm(), rtol=1e-10, atol=0)


def test_examples_of_opposite_signs_do_not_cancel():
    model = nn.Sequential(nn.Linear(1, 2, bias=False), nn.Linear(2, 1, bias=False)).double()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[1].weight.copy_(torch.tensor([[1.0, 0.5]]))
    data = [(torch.tensor([[1.0], [1.0]], dtype=torch.float64), torch.tensor([[1.0], [-1.0]], dtype=torch.float64))]

    def loss(out, y):
        return (out * y).mean()

    found = {c: scores_of(c, model, data, loss=loss)["0.weight:0"].tolist() for c in (
        Taylor("batch"), Taylor("example"), Taylor2016(normalise=False))}  # fmt: skip
    assert [*found.values()] == [[0, 0], [1, 0.25], [1, 0.5]]


def test_where_the_loss_is_linear_in_the_gate_taylor_is_the_change(data):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(18, 4), nn.Tanh(), nn.Linear(4, 3)).double()

    def loss(out, y):
        return out.gather(1, y[:, None]).mean()

    taylor = scores_of(Taylor(), net, data[:1], loss=loss)["1.weight:0"]
    change = scores_of(LeaveOut(), net, data[:1], loss=loss)["1.weight:0"]
    torch.testing.assert_close(taylor.sqrt(), change.abs(), rtol=1e-10, atol=1e-14)


def test_units_that_no_weight_takes_in_are_refused(net, data):
    with pytest.raises(InputError, match="taylor-weight"):
        scores_of(Taylor(), net, data, structure="weight")


class Meeting(nn.Module):
    """Queries and keys: features that no weight takes in."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x, gates=None):
        q = self.q(x) if gates is None else self.q(x) * gates
        return self.out(torch.softmax(q @ self.k(x).mT, -1) @ self.v(x)).mean(1)


def test_units_that_no_weight_takes_in_have_their_gate_where_they_are_made():
    torch.manual_seed(0)
    net = Meeting().double()
    data = [(torch.randn(n, 6, 3, dtype=torch.float64), torch.arange(n) % 2) for n in (4, 5)]
    expected = torch.zeros(4, dtype=torch.float64)
    for x, y in data:
        gates = torch.ones(4, dtype=torch.float64, requires_grad=True)
        expected += torch.autograd.grad(F.cross_entropy(net(x, gates), y), gates)[0].square() / 2
    found = scores_of(Taylor(), net, data)
    torch.testing.assert_close(found["q.weight:0"], expected, rtol=1e-9, atol=0)
    assert set(found) == {"q.weight:0", "v.weight:0"}
    with pytest.raises(InputError, match="by batch only"):
        scores_of(Taylor("example"), net, data)


def test_tokens_are_examples_too():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(5, 7, 3, dtype=torch.float64), torch.randn(5, 7, 2, dtype=torch.float64)
    z = net[:2](x).detach().requires_grad_(True)
    F.mse_loss(net[2](z), y).backward()
    expected = (5 * (z * z.grad).sum(1)).square().mean(0)
    found = scores_of(Taylor("example"), net, [(x, y)], loss=F.mse_loss)["0.weight:0"]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)


# ------------------------------------------------------------------ weights and their gradients


@pytest.mark.parametrize("structure", ["weight", "channel"])
def test_weight_forms_are_loops_over_batches(net, data, structure):
    planner = units_of(net, data[0][0], structure)
    batches = [collect_gradients(net, [batch], F.cross_entropy) for batch in data]
    for units in planner.units:
        parts = [cut(units, g).weights for g in batches]
        weights = cut(units, parameters_of(net)).weights
        square = sum((w * g).square().sum(1) for part in parts for w, g in zip(weights, part, strict=True)) / 2
        signed = sum((w * g).sum(1) for part in parts for w, g in zip(weights, part, strict=True)) / 2
        found = {c: scores_of(c, net, data, structure)[units.name] for c in (
            TaylorWeight(), TaylorWeight(cross=True), Fisher("batch"))}  # fmt: skip
        torch.testing.assert_close(found[TaylorWeight()], square, rtol=1e-10, atol=1e-18)
        torch.testing.assert_close(found[TaylorWeight(cross=True)], signed.square(), rtol=1e-10, atol=1e-18)
        torch.testing.assert_close(found[Fisher("batch")], square / 2, rtol=1e-10, atol=1e-18)


def test_fisher_of_batches_of_one_is_that_of_examples(net, data):
    ones = [(x[i : i + 1], y[i : i + 1]) for x, y in data for i in range(len(x))]
    for name, value in scores_of(Fisher("batch"), net, ones).items():
        torch.testing.assert_close(scores_of(Fisher(), net, data)[name], value, rtol=1e-10, atol=0)
        assert not torch.allclose(scores_of(Fisher("batch"), net, data)[name], value)


def test_snip_is_the_gradient_by_auxiliary_masks(net, data):
    """F1(a): |∂L(c ⊙ w)/∂c| at c = 1, by autograd through the masks themselves."""
    weights = {n: p.detach() for n, p in net.named_parameters()}
    masks = {n: torch.ones_like(p, requires_grad=True) for n, p in weights.items()}
    out = torch.func.functional_call(net, {n: weights[n] * masks[n] for n in weights}, data[0][0])
    found = dict(zip(masks, torch.autograd.grad(F.cross_entropy(out, data[0][1]), [*masks.values()]), strict=True))
    for name, scores in scores_of(topiarist.saliency.resolve("snip"), net, data[:1], "weight").items():
        torch.testing.assert_close(scores, found[name].abs().flatten(), rtol=1e-7, atol=1e-15)


def test_the_signed_sum_of_sensitivities_is_the_same_in_every_layer():
    """F1(b): Euler's identity for a network of ReLUs without biases."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(5, 8, bias=False), nn.ReLU(), nn.Linear(8, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False)
    ).double()
    data = [(torch.randn(20, 5, dtype=torch.float64), torch.arange(20) % 3)]
    gradients = collect_gradients(net, data, F.cross_entropy)
    sums = [float((net.get_parameter(name) * g).sum().detach()) for name, g in gradients.items()]
    assert sums == pytest.approx([sums[0]] * 3, rel=1e-10)
    net[1] = nn.Tanh()
    gradients = collect_gradients(net, data, F.cross_entropy)
    sums = [float((net.get_parameter(name) * g).sum().detach()) for name, g in gradients.items()]
    assert sums != pytest.approx([sums[0]] * 3, rel=1e-2)


def test_first_order_scores_are_finite_differences_of_the_loss(net, data):
    """|w g| is |dL/dε| for w ← (1 + ε) w, weight by weight."""
    found = scores_of(Gradient(), net, data, "weight")["conv2.weight"]
    work, step = copy.deepcopy(net), 1e-5
    flat = work.conv2.weight.data.view(-1)
    for i in range(len(flat)):
        losses = []
        for sign in (1, -1):
            before = flat[i].clone()
            flat[i] = before * (1 + sign * step)
            losses.append(sum(F.cross_entropy(work(x), y) for x, y in data) / 2)
            flat[i] = before
        assert abs(losses[0] - losses[1]).item() / (2 * step) == pytest.approx(float(found[i]), rel=1e-5, abs=1e-9)


# ------------------------------------------------------------------ leaving out


@pytest.mark.parametrize("structure", ["weight", "channel", "kernel"])
def test_leaving_out_is_masking(net, data, structure):
    planner = units_of(net, data[0][0], structure)
    before = copy.deepcopy(net.state_dict())
    found = planner.candidates(LeaveOut(), data, F.cross_entropy, {}).scores
    assert all(torch.equal(before[n], t) for n, t in net.state_dict().items())
    base = sum(F.cross_entropy(net(x), y) for x, y in data) / 2
    for units in planner.units:
        for j in range(0, units.num, 5):
            removed = {u.name: torch.zeros(u.num, dtype=torch.bool) for u in planner.units}
            removed[units.name][j] = True
            with masked(net, planner.make(removed)):
                change = sum(F.cross_entropy(net(x), y) for x, y in data) / 2 - base
            assert float(found[units.name][j]) == pytest.approx(change.item(), rel=1e-9, abs=1e-14)


# ------------------------------------------------------------------ movement


def test_movement_is_what_training_moves(net, data):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    expected = {n: torch.zeros_like(p) for n, p in net.named_parameters()}
    with record_movement(net) as scores:
        for x, y in data * 2:
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            for n, p in net.named_parameters():
                expected[n] -= (p * p.grad).detach()
            optimizer.step()
    F.cross_entropy(net(data[0][0]), data[0][1]).backward()
    optimizer.step()  # no longer recorded
    for n, value in expected.items():
        torch.testing.assert_close(scores[n], value, rtol=1e-12, atol=0)
    planner = units_of(net, data[0][0])
    found = planner.candidates(Movement(scores), None, None, {}).scores
    for units in planner.units:
        total = sum(part.sum(1) for part in cut(units, scores).weights)
        torch.testing.assert_close(found[units.name], total, rtol=1e-12, atol=1e-15)


def test_movement_without_scores_for_a_parameter_or_of_another_shape(net, data):
    scores = {n: torch.zeros_like(p) for n, p in net.named_parameters()}
    missing = {n: s for n, s in scores.items() if n != "conv2.weight"}
    with pytest.raises(InputError, match=r"no scores for 'conv2\.weight'"):
        units_of(net, data[0][0]).candidates(Movement(missing), None, None, {})
    with pytest.raises(InputError, match=r"conv2\.weight"):
        units_of(net, data[0][0]).candidates(Movement({**scores, "conv2.weight": torch.zeros(3)}), None, None, {})


@pytest.mark.parametrize("broken", ["positions", "examples"])
def test_gates_catch_products_without_their_signs(net, data, monkeypatch, broken):
    from topiarist.stats import gates

    products = gates._products

    def wrong(use, size):
        found, positions = products(use, size)
        return found.abs() if broken == "positions" else found.mean(0, keepdim=True).expand_as(found), positions

    monkeypatch.setattr(gates, "_products", wrong)
    with pytest.raises(AssertionError):
        test_taylor_is_the_gradient_of_gates(net, data, "conv1.weight:0")
