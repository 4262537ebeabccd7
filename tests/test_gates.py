"""Gates: their published values, the network they make against the masked one, and the size they reach."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch._dynamo
from torch import nn

import topiarist
from topiarist import Budget
from topiarist.errors import InputError
from topiarist.mask import AugmentedLagrangian
from topiarist.mask.attach import masked
from topiarist.mask.gates import BetaBernoulli, Gates, HardConcrete, ScalarGate
from topiarist.mask.gates.base import Gate
from topiarist.planning import Planner
from topiarist.structure import resolve
from topiarist.testing.invariants import nothing_left_behind
from topiarist.testing.zoo import build

NETS = ["mlp", "vgg_bn", "resnet_option_b", "depthwise", "recurrent_layers", "multihead_attention", "vit",
        "grouped_query_attention", "tied_embedding", "dense_block", "squeeze_excite", "glu_operator",
        "transposed_groups", "einsum_attention", "weight_norm"]  # fmt: skip


def network(name):
    model, inputs = build(name)
    model.double().eval()
    return model, inputs.double() if inputs.is_floating_point() else inputs


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double(), torch.randn(9, 4, dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------ one gate alone


@pytest.mark.parametrize(("beta", "golden"), [(1.0, 11 / 12), (2 / 3, 0.83182)])
def test_hard_concrete_has_the_published_probability(beta, golden):
    gate = HardConcrete(1, beta=beta)
    nn.init.zeros_(gate.log_alpha)
    assert float(gate.expected_l0().detach()) == pytest.approx(golden, abs=5e-6)


@pytest.mark.parametrize("log_alpha", [-2.0, 0.0, 1.0])
def test_hard_concrete_is_zero_as_often_as_it_says(log_alpha):
    torch.manual_seed(0)
    gate = HardConcrete(200_000)
    nn.init.constant_(gate.log_alpha, log_alpha)
    z = gate.sample().detach()
    assert float(z.min()) == 0
    assert float(z.max()) == 1
    expected = float(gate.expected_l0()[0].detach())
    assert float((z != 0).double().mean()) == pytest.approx(expected, abs=4 * 0.5 / math.sqrt(200_000))  # 4 σ


def test_hard_concrete_without_noise():
    gate = HardConcrete(4, beta=1.0)
    with torch.no_grad():
        gate.log_alpha.copy_(torch.tensor([-4.0, -0.5, 0.5, 4.0]))
    s = 1 / (1 + np.exp(-gate.log_alpha.detach().numpy()))
    np.testing.assert_allclose(gate.deterministic().numpy(), np.clip(s * 1.2 - 0.1, 0, 1), rtol=1e-6)
    gate.exact_count = True
    soft = 1 / (1 + np.exp(-0.8 * gate.log_alpha.detach().numpy()))
    soft[: round(4 - float(gate.expected_l0().sum().detach()))] = 0
    assert (soft == 0).sum() == 1
    np.testing.assert_allclose(gate.deterministic().numpy(), soft, rtol=1e-6)


def test_gradients_reach_what_decides():
    torch.manual_seed(0)
    for gate, parameters in (
        (HardConcrete(50), ["log_alpha"]),
        (BetaBernoulli(50), ["a_uc", "b_uc"]),
        (ScalarGate(50), ["value"]),
    ):
        for value in (gate.sample().sum(), gate.penalty()):
            gate.zero_grad()
            value.backward()
            assert all(bool((getattr(gate, name).grad != 0).any()) for name in parameters)
        assert not gate.deterministic().requires_grad


@pytest.mark.parametrize(
    ("a_uc", "a", "mean", "divergence"), [(-1.0, 0.3133, 0.2385, 7.05), (2.0, 2.1269, 0.6802, 8.9651)]
)
def test_beta_bernoulli_has_the_published_values(a_uc, a, mean, divergence):
    gate = BetaBernoulli(1, a=a_uc)
    found, b = gate._shape()
    assert float(found.detach()) == pytest.approx(a, abs=5e-5)
    assert float(b.detach()) == pytest.approx(1, abs=5e-5)
    assert float(gate.deterministic()) == pytest.approx(mean, abs=5e-5)
    assert float(gate.penalty().detach()) == pytest.approx(divergence, abs=5e-4)  # float32 of numbers around 9


@pytest.mark.parametrize(("a_uc", "b_uc", "prior"), [(0.5, 1.0, 0.5), (2.0, 0.5413, 1.5)])
def test_the_divergence_is_the_integral(a_uc, b_uc, prior):
    """∫ q log(q / p) over π by the midpoint rule in u, of which π is the quantile."""
    gate = BetaBernoulli(1, a=a_uc, b=b_uc, prior=prior).double()
    a, b = (float(x.detach()) for x in gate._shape())
    u = (np.arange(2_000_000) + 0.5) / 2_000_000
    pi = (1 - u ** (1 / b)) ** (1 / a)
    log_q = np.log(a * b) + (a - 1) * np.log(pi) + (b - 1) * np.log(u ** (1 / b))
    log_p = np.log(prior) + (prior - 1) * np.log(pi)
    assert float(gate.penalty().detach()) == pytest.approx(np.mean(log_q - log_p), rel=1e-4)
    assert float(gate.expected_l0().detach()) == pytest.approx(np.mean(pi), rel=1e-5)


def test_beta_bernoulli_samples_are_nearly_binary_and_of_the_mean():
    torch.manual_seed(0)
    z = BetaBernoulli(100_000, a=2.0).sample().detach()
    assert float(z.mean()) == pytest.approx(0.6802, abs=0.006)  # 4 σ, and the relaxation is symmetric
    assert float(((z < 0.1) | (z > 0.9)).double().mean()) > 0.8
    closed = BetaBernoulli(1, a=-9.9)
    assert float(closed.deterministic()) == 0


@pytest.mark.parametrize("make", [
    lambda: HardConcrete(1, drop=0.0), lambda: HardConcrete(1, beta=0), lambda: HardConcrete(1, gamma=0.1),
    lambda: BetaBernoulli(1, prior=0.0), lambda: BetaBernoulli(1, a=math.nan), lambda: AugmentedLagrangian(1.5),
    lambda: AugmentedLagrangian(0.5, warm_up=-1),
])  # fmt: skip
def test_nonsense_is_refused(make):
    with pytest.raises(InputError):
        make()


# ------------------------------------------------------------------------------------------------------- on a network


def close_half(gates):
    closed = {}
    for units in gates.units:
        closed[units.name] = torch.arange(units.num) % 2 == 1
        with torch.no_grad():
            gates[units.name].value.copy_((~closed[units.name]).to(gates[units.name].value))
    return closed


@pytest.mark.parametrize("structure", ["weight", "channel", "head", "block:2x2"])
@pytest.mark.parametrize("name", NETS)
def test_closed_gates_are_masks(name, structure):
    model, inputs = network(name)
    try:
        gates = Gates(model, inputs, ScalarGate, structure)
    except InputError:
        pytest.skip(f"{name} has no {structure}")
    planner = Planner.of(model, inputs, resolve(structure), (), None)
    gates.attach()
    whole = model(inputs)
    closed = close_half(gates)
    inexact = [n for n in closed if planner.structure.is_physical and planner.axes.why_inexact(n)]
    for n in inexact:  # there a unit that is gone is another thing than one that nobody reads
        closed[n][:] = False
        nn.init.ones_(gates[n].value)
    gated = model(inputs)
    gates.detach()
    torch.testing.assert_close(model(inputs), whole, rtol=0, atol=0)
    if not any(c.any() for c in closed.values()):
        pytest.skip("no axis of it is exact")
    plan = planner.make(closed)
    with masked(model, plan):
        torch.testing.assert_close(gated, model(inputs), rtol=1e-12, atol=1e-12)
        assert not torch.equal(gated, whole)


@pytest.mark.parametrize("training", [True, False])
def test_a_gate_multiplies_the_activation_of_its_unit(training):
    model, x = mlp()
    gates = Gates(model.train(training), x, ScalarGate)
    with torch.no_grad():
        gates["0.weight:0"].value.copy_(torch.linspace(0, 1, 6))
    gates.attach()
    model(x).sin().sum().backward()
    hidden = torch.tanh(x @ model[0].weight.T + model[0].bias).detach()
    z = torch.linspace(0, 1, 6, dtype=torch.float64, requires_grad=True)
    expected = (hidden * z) @ model[2].weight.detach().T + model[2].bias.detach()
    expected.sin().sum().backward()
    torch.testing.assert_close(model(x), expected, rtol=1e-6, atol=1e-6)  # the gates are in single precision
    if training:
        torch.testing.assert_close(gates["0.weight:0"].value.grad.double(), z.grad, rtol=1e-5, atol=1e-5)
    gates.detach()


def test_the_gate_of_queries_and_keys_closes_as_well():
    """Queries times keys are summed over by no weight: what makes them is multiplied, and closed is removed."""
    model, inputs = network("vit")
    gates = Gates(model, inputs, ScalarGate)
    assert {m.tensor.rpartition(".")[2] for m in gates._members["blocks.0.attn.qkv.weight:0.2"]} == {"weight", "bias"}


@pytest.mark.parametrize("name", ["mlp", "vit", "buffers_with_channels", "recurrent_layers"])
def test_off_again_without_a_trace(name):
    model, inputs = build(name)
    model.train()
    with nothing_left_behind(model, inputs):
        with torch.random.fork_rng():
            gates = Gates(model, inputs, HardConcrete)
        gates.attach()
        gates.attach()
        keys = list(model.state_dict())
        with torch.random.fork_rng():
            one, two = model(inputs), model(inputs)
        assert keys == list(model.state_dict())
        assert not torch.equal(torch.as_tensor(one), torch.as_tensor(two)), "gates are drawn anew each time"
        gates.detach()


def test_parameters_are_back_after_an_error():
    model, x = mlp()
    held = dict(model.named_parameters())
    gates = Gates(model, x, ScalarGate)
    gates.attach()
    with pytest.raises(RuntimeError):
        model(x[:, :2])
    assert all(p is held[n] for n, p in model.named_parameters())
    model(x)
    assert all(p is held[n] for n, p in model.named_parameters())
    gates.detach()


def test_copies_are_plain():
    model, x = mlp()
    gates = Gates(model, x, ScalarGate)
    before = model(x)
    nn.init.zeros_(gates["0.weight:0"].value)
    gates.attach()
    assert not torch.equal(model(x), before)
    assert torch.equal(copy.deepcopy(model)(x), before)
    gates.detach()


def test_random_states_stay_where_nothing_is_drawn():
    model, x = mlp()
    state = torch.get_rng_state()
    gates = Gates(model, x, ScalarGate)
    gates.attach()
    model(x)
    gates.detach()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_under_torch_compile(backend):
    model, x = mlp()
    gates = Gates(model, x, ScalarGate)
    close_half(gates)
    gates.attach()
    expected = model(x)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-12, atol=1e-12)
    compiled(x).sum().backward()
    assert gates["0.weight:0"].value.grad is not None
    assert all(isinstance(p, nn.Parameter) for m in model.modules() for p in m._parameters.values())
    gates.detach()
    torch._dynamo.reset()


def test_gates_are_a_criterion_and_fold_into_the_weights():
    model, x = mlp()
    gates = Gates(model, x, ScalarGate)
    with torch.no_grad():
        gates["0.weight:0"].value.copy_(torch.tensor([0.9, 0.0, 0.5, 0.0, 1.0, 0.0]))
    gates.attach()
    model.eval()
    soft = model(x)
    plan = topiarist.plan(model, x, structure="channel", saliency=gates.score, budget=Budget(sparsity=0.5))
    assert plan.removed["0.weight:0"].tolist() == [False, True, False, True, False, True]
    gates.fold()
    torch.testing.assert_close(model(x), soft, rtol=1e-12, atol=1e-12)
    small = topiarist.shrink(model, plan, x)
    assert small[0].out_features == 3
    torch.testing.assert_close(small(x), soft, rtol=1e-12, atol=1e-12)
    with pytest.raises(InputError, match="no units are called"):
        topiarist.plan(model, x, structure="weight", saliency=gates.score, budget=Budget(sparsity=0.5))


def test_units_cost_what_they_have():
    model, x = mlp()  # a hidden unit has 4 + 1 + 3 numbers
    gates = Gates(nn.Sequential(*model, nn.Tanh(), nn.Linear(3, 2).double()), x, ScalarGate)
    with torch.no_grad():
        gates["0.weight:0"].value.fill_(0.25)
        gates["2.weight:0"].value.fill_(1.0)
    first, second = 6 * (4 + 1 + 3), 3 * (6 + 1 + 2)
    assert float(gates.expected_sparsity().detach()) == pytest.approx(0.75 * first / (first + second))
    assert float(gates.density().detach()) == pytest.approx((0.25 * 6 + 3) / 9)
    assert float(gates.penalty().detach()) == pytest.approx(0.25 * 6 + 3)


def test_a_gate_of_ones_own():
    class Fixed(Gate):
        def __init__(self, num):
            super().__init__()
            self.register_buffer("z", torch.full((num,), 0.5))

        def sample(self):
            return self.z

        expected_l0 = deterministic = sample

    model, x = mlp()
    gates = Gates(model, x, Fixed)
    gates.attach()
    halved = model(x)
    gates.detach()
    expected = (model(x) + model[2].bias) / 2
    torch.testing.assert_close(halved, expected, rtol=1e-12, atol=1e-12)


# ------------------------------------------------------------------------------------------------------ to a size


def test_pruning_from_scratch_learns_gates_and_nothing_else():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 2))
    x = torch.randn(256, 8)
    y = torch.stack([x[:, 0], x[:, 1]], 1)
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    gates = Gates(model, x, ScalarGate)
    gates.attach()
    optimizer = torch.optim.Adam(gates.parameters(), lr=1e-2)
    for _ in range(400):
        optimizer.zero_grad()
        (nn.functional.mse_loss(model(x), y) + 20 * (gates.density() - 0.4) ** 2).backward()
        optimizer.step()
        gates.project()
        values = gates["0.weight:0"].deterministic()
        assert 0 <= float(values.min()) <= float(values.max()) <= 1
    gates.detach()
    assert abs(float(gates.density().detach()) - 0.4) < 0.05
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())


def test_the_multipliers_ascend_until_the_target_is_met():
    """With nothing else to minimise the expected sparsity converges to the target; the target warms up."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 2))
    gates = Gates(model, torch.zeros(1, 8), lambda num: HardConcrete(num, drop=0.05, beta=1.0))
    lagrangian = AugmentedLagrangian(0.6, warm_up=200)
    optimizer = torch.optim.Adam(gates.parameters(), lr=0.02)
    ascent = torch.optim.Adam(lagrangian.parameters(), lr=0.1, maximize=True)
    signs = set()
    for step in range(2000):
        assert lagrangian.target_now == pytest.approx(0.6 * min(1, step / 200))
        optimizer.zero_grad()
        ascent.zero_grad()
        lagrangian(gates.expected_sparsity()).backward()
        optimizer.step()
        ascent.step()
        signs.add(float(lagrangian.linear.detach()) > 0)
    assert float(gates.expected_sparsity().detach()) == pytest.approx(0.6, abs=0.01)
    assert signs == {True, False}, "λ₁ follows the side of the target on which the model is"


def factorised(target, steps):
    """A map of rank 4, learnt as a product of rank 16: the gates, the model and its relative error."""
    torch.manual_seed(1)
    true = torch.randn(32, 4) @ torch.randn(4, 32) / 4
    model = nn.Sequential(nn.Linear(32, 16, bias=False), nn.Linear(16, 32, bias=False))
    gates = Gates(model, torch.zeros(1, 32), lambda num: HardConcrete(num, beta=1.0, exact_count=True))
    lagrangian = AugmentedLagrangian(target, warm_up=steps // 4)
    optimizer = torch.optim.Adam([{"params": model.parameters()}, {"params": gates.parameters(), "lr": 5e-2}], lr=1e-2)
    ascent = torch.optim.Adam(lagrangian.parameters(), lr=0.2, maximize=True)
    gates.attach()
    for _ in range(steps):
        x = torch.randn(128, 32)
        loss = nn.functional.mse_loss(model(x), x @ true.T + 0.1 * torch.randn(128, 32))
        optimizer.zero_grad()
        ascent.zero_grad()
        (loss + lagrangian(gates.expected_sparsity())).backward()
        optimizer.step()
        ascent.step()
    model.eval()
    with torch.no_grad():
        error = (model(torch.eye(32)).T - true).norm() / true.norm()
    gates.detach()
    return gates, model, float(error)


def test_factorised_pruning_finds_the_rank():
    """t = 0.75 of 16 ranks: the 4 that the map has (Wang, Wohlwend, Lei 2020)."""
    gates, model, error = factorised(0.75, 1200)
    assert float(gates.expected_sparsity().detach()) == pytest.approx(0.75, abs=0.01)
    assert int((gates["0.weight:0"].deterministic() > 0).sum()) == 4
    assert error < 0.1
    plan = topiarist.plan(
        model, torch.zeros(1, 32), structure="channel", saliency=gates.score, budget=Budget(sparsity=0.75)
    )
    gates.fold()
    assert topiarist.shrink(model, plan, torch.zeros(1, 32))[0].out_features == 4
