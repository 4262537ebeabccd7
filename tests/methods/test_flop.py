"""FLOP: gated factors are the product, their size is counted in numbers, and two small layers are what is left."""

from __future__ import annotations

import copy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from topiarist import Budget
from topiarist.errors import BudgetError, InputError
from topiarist.graph.factored import Factored
from topiarist.mask import AugmentedLagrangian, Factors
from topiarist.mask.gates import HardConcrete
from topiarist.measure import macs
from topiarist.methods import flop
from topiarist.models import SRULanguageModel, TransformerXL

MAKE = partial(HardConcrete, beta=1.0, exact_count=True)


def tokens(num=20):
    torch.manual_seed(0)
    return torch.randint(20, (2, num))


def network(name):
    torch.manual_seed(0)
    if name == "sru":
        return SRULanguageModel(num_tokens=20, dim=16).double(), tokens()
    if name == "transformer-xl":
        return TransformerXL(20, dim=16, num_layers=2, num_heads=2, num_hidden=32, dropout=0.0).double(), tokens()
    net = nn.Sequential(nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(48, 20), nn.ReLU(),
                        nn.Linear(20, 5))  # fmt: skip
    return net.double(), torch.randn(4, 3, 4, 4, dtype=torch.float64)


NETS = ["sru", "transformer-xl", "convolutions"]


def spread_gates(factors, seed=0):
    torch.manual_seed(seed)
    for gate in factors.gates:
        nn.init.normal_(gate.log_alpha, std=3.0)
    return factors.double()


@pytest.mark.parametrize("name", NETS)
def test_the_forward_pass_is_that_of_the_factors(name):
    """P diag(z) Q written by a loop, put into a copy of the model."""
    model, x = network(name)
    factors = spread_gates(Factors(model, x, MAKE))
    twin = copy.deepcopy(model).eval()
    for place, weight in enumerate(factors.names):
        p, q = (half[place].detach().numpy() for half in (factors.left, factors.right))
        z = factors.gates[place].deterministic().numpy()
        product = sum(z[k] * np.outer(p[:, k], q[k]) for k in range(len(z)))
        parameter = dict(twin.named_parameters())[weight]
        with torch.no_grad():
            parameter.copy_(torch.tensor(product).view_as(parameter))
    factors.attach()
    out = model.eval()(x)
    factors.detach()
    torch.testing.assert_close(out, twin(x), rtol=1e-10, atol=1e-12)
    assert not torch.allclose(model(x), out)


def test_factors_begin_as_the_nearest_product():
    model, x = network("convolutions")
    factors = Factors(model, x, MAKE).double()
    weight = model[4].weight.detach().numpy()
    _, sigma, _ = np.linalg.svd(weight)
    rank = factors.ranks["4.weight"]
    assert rank == 48 * 20 // 68
    place = factors.names.index("4.weight")
    apart = np.linalg.norm((factors.left[place] @ factors.right[place]).detach().numpy() - weight) ** 2
    assert apart == pytest.approx((sigma[rank:] ** 2).sum(), rel=1e-5)  # Eckart and Young; gates are made in float32


def test_the_size_counts_the_numbers_of_a_component():
    """ŝ = 1 − Σ (in + out) E‖z‖₀ / Σ (in + out) r, by a loop; counting each component as one gives another number."""
    model, x = network("convolutions")
    factors = spread_gates(Factors(model, x, MAKE))
    sizes = {"0.weight": 12 + 27, "4.weight": 48 + 20, "6.weight": 20 + 5}
    left = whole = ones = 0.0
    for name, gate in zip(factors.names, factors.gates, strict=True):
        p = 1 / (1 + np.exp(-(gate.log_alpha.detach().numpy() - np.log(0.1 / 1.1))))
        left += sizes[name] * p.sum()
        whole += sizes[name] * len(p)
        ones += p.sum()
    found = float(factors.expected_sparsity().detach())
    assert found == pytest.approx(1 - left / whole, rel=1e-10)
    assert found != pytest.approx(1 - ones / sum(factors.ranks.values()), rel=1e-3)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("budget", [Budget(params=0.7), Budget(macs=0.6), Budget(compression=1.5)])
def test_what_is_kept_meets_the_budget(name, budget):
    """The model that is left is counted; with the last component back it would be too large."""
    model, x = network(name)
    factors = spread_gates(Factors(model, x, MAKE))
    each, rest, whole = factors.costs(budget.unit)
    kept = factors.kept(factors.target(budget), budget.unit)
    size = rest + sum(each[n] * int(k.count_nonzero()) for n, k in kept.items())
    assert size <= (1 - budget.removed) * whole < size + max(each.values())
    likely = {n: g.expected_l0().detach() for n, g in zip(factors.names, factors.gates, strict=True)}
    several = [n for n, k in kept.items() if int(k.count_nonzero()) > 1]
    assert max(float(likely[n][~k].max()) for n, k in kept.items() if not k.all()) <= min(
        float(likely[n][kept[n]].min()) for n in several
    )
    factors.fold(kept)
    small = copy.deepcopy(model)
    for weight in factors.names:
        layer = small.get_submodule(weight.rpartition(".")[0])
        basis = torch.linalg.svd(layer.weight.detach().flatten(1))[0][:, : int(kept[weight].count_nonzero())]
        parent, _, leaf = weight.rpartition(".")[0].rpartition(".")
        setattr(small.get_submodule(parent), leaf, Factored.of(layer, basis))
    counted = macs(small, x).total if budget.unit == "macs" else sum(p.numel() for p in small.parameters())
    assert counted == size


@pytest.mark.parametrize("name", NETS)
def test_two_layers_are_the_gated_product(name):
    """The whole method without training: the outputs of what is left are those with the gates, within 1e-5."""
    model, x = network(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    data = [(x, x if x.dtype == torch.long else torch.zeros(4, dtype=torch.long))]
    options = {"data": data, "loss": F.cross_entropy, "epochs": 0, "budget": Budget(sparsity=0.6)}
    torch.manual_seed(3)
    result = flop(model, x, **options)
    torch.manual_seed(3)
    factors = Factors(model, x, partial(HardConcrete, drop=0.05, beta=1.0, exact_count=True))
    kept = factors.kept(0.6, "sparsity")
    twin = copy.deepcopy(model).eval()
    for weight in factors.names:
        parameter = dict(twin.named_parameters())[weight]
        with torch.no_grad():
            parameter.copy_(factors.product(weight, kept[weight]).view_as(parameter))
    torch.testing.assert_close(result.model.eval()(x), twin(x), rtol=1e-5, atol=1e-5)
    made = [m for m in result.model.modules() if isinstance(m, Factored)]
    assert sorted(m.rank for m in made) == sorted(int(k.count_nonzero()) for k in kept.values())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_without_a_task_the_size_becomes_the_target():
    """ŝ converges to t with a loss of 0, and λ₁, driven below 0 while ŝ < t, turns where it overshoots."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 32))
    factors = Factors(net, torch.zeros(1, 32), partial(MAKE, drop=0.3))
    size = AugmentedLagrangian(0.6)
    down = torch.optim.Adam(factors.gates.parameters(), 0.02)
    up = torch.optim.Adam(size.parameters(), 0.1, maximize=True)
    slopes = []
    for _ in range(600):
        down.zero_grad(), up.zero_grad()
        size(factors.expected_sparsity()).backward()
        slopes.append(float(size.linear.grad))
        down.step(), up.step()
    assert float(factors.expected_sparsity().detach()) == pytest.approx(0.6, abs=0.01)
    assert min(slopes) < 0 < max(slopes)


class Regression:
    """Y = X W*ᵀ + 0.1 · noise with W* of rank 4 in 32 × 32, fresh at every step."""

    def __init__(self, num_steps):
        torch.manual_seed(0)
        self.num_steps, self.weight = num_steps, torch.randn(32, 4) @ torch.randn(4, 32) / 4

    def __len__(self):
        return self.num_steps

    def __iter__(self):
        for _ in range(self.num_steps):
            x = torch.randn(128, 32)
            yield x, x @ self.weight.T + 0.1 * torch.randn(128, 32)


def test_the_rank_of_a_regression_is_found():
    """The golden run: r = 16 and t = 0.75 leave exactly the 4 components that there are."""
    data = Regression(4000)
    result = flop(
        nn.Sequential(nn.Linear(32, 32, bias=False)), torch.zeros(2, 32), data=data, loss=F.mse_loss, epochs=1,
        budget=Budget(sparsity=0.75), lr=1e-2, gate_lr=1e-2, multiplier_lr=0.1, warm_up=0.25, drop=0.5,
    )  # fmt: skip
    assert result.curve[0]["expected_sparsity"] == pytest.approx(0.75, abs=0.01)
    assert result.curve[0]["params"] == pytest.approx(0.25, rel=0.01)
    assert result.curve[0]["min_rank"] == 4
    assert result.verification.passed
    with torch.no_grad():
        x = torch.randn(500, 32)
        wanted = x @ data.weight.T
        assert float((result.model(x) - wanted).square().sum() / wanted.square().sum()) < 0.02


def test_what_cannot_be_is_refused():
    model, x = network("convolutions")
    options = {"data": [(x, torch.zeros(4, dtype=torch.long))], "loss": F.cross_entropy, "epochs": 0}
    with pytest.raises(BudgetError, match="nearest is 0"):
        flop(model, x, budget=Budget(params=0.01), **options)
    with pytest.raises(InputError, match="got a budget of bytes"):
        flop(model, x, budget=Budget(bytes=0.5), **options)
    with pytest.raises(InputError, match="matches no module"):
        flop(model, x, budget=Budget(params=0.5), keep=["nothing"], **options)
    whole = flop(model, x, budget=Budget(params=0.7), keep=["0"], **options).model
    assert isinstance(whole[0], nn.Conv2d)
    assert isinstance(whole[4], Factored)
