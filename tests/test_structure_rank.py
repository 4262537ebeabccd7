"""Structure rank: the nearest matrix of its rank, two layers for one, prices that are the bill, masks that hold."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import topiarist
from topiarist import Budget
from topiarist.errors import FormatError, InputError
from topiarist.graph.factored import Factored
from topiarist.plan import Plan
from topiarist.shrink.precision import in_float64
from topiarist.structure import Rank
from topiarist.structure.rank import best_paying, components
from topiarist.testing.invariants import nothing_left_behind


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 16, 1),
        nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.Flatten(), nn.Linear(16 * 9, 24), nn.ReLU(), nn.Linear(24, 10),
    )  # fmt: skip


IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
DATA = [(torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(i)), torch.arange(8)) for i in range(3)]


# ------------------------------------------------------------------------------------------------------------ algebra


@pytest.mark.parametrize(("num_out", "num_in"), [(1, 1), (2, 2), (3, 7), (100, 300), (64, 64), (10, 1000)])
def test_the_highest_rank_that_pays(num_out, num_in):
    paying = [r for r in range(1, num_out + num_in) if r * (num_out + num_in) < num_out * num_in]
    assert best_paying(num_out, num_in) == max(paying, default=0)


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (6, 3, 2, 2)])
def test_the_projection_is_the_nearest_matrix_of_its_rank(shape):
    """The oracle: NumPy's truncated singular value decomposition (Eckart and Young)."""
    weight = torch.randn(shape, dtype=torch.float64)
    u, sigma, vt = np.linalg.svd(weight.flatten(1).numpy(), full_matrices=False)
    for rank in range(1, len(sigma)):
        basis = components(weight)[0][:, :rank]
        found = basis @ (basis.T @ weight.flatten(1))
        np.testing.assert_allclose(found.numpy(), (u[:, :rank] * sigma[:rank]) @ vt[:rank], atol=1e-12)
    np.testing.assert_allclose(components(weight)[1].numpy(), sigma, rtol=1e-12)


def test_weighted_components_are_the_best_for_the_outputs():
    """‖(W − W_r) X‖² is the sum of the σ² that go, no more than for any other projection, plain components included."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(7, 9, generator=generator, dtype=torch.float64)
    x = torch.randn(200, 9, generator=generator, dtype=torch.float64) * torch.logspace(-2, 1, 9)
    u, sigma = components(weight, x.T @ x)

    def error(basis):
        return float(((weight - basis @ (basis.T @ weight)) @ x.T).pow(2).sum())

    for rank in range(1, 7):
        best = error(u[:, :rank])
        assert best == pytest.approx(float(sigma[rank:].pow(2).sum()), rel=1e-9)
        assert best <= error(components(weight)[0][:, :rank]) * (1 + 1e-12)
        for _ in range(20):
            other = torch.linalg.qr(torch.randn(7, rank, generator=generator, dtype=torch.float64)).Q
            assert best <= error(other)


def test_a_component_s_gradient_is_that_of_its_singular_value():
    """Finite differences of the loss along u zᵀ."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 5).double()
    net, x = nn.Sequential(layer), torch.randn(8, 6, dtype=torch.float64)
    for grams in ({}, {"0.weight": torch.diag(torch.arange(1.0, 7.0)).double()}):
        member = Rank(grams).units(topiarist.trace(net, x))[0].members[0]
        weight = layer.weight.detach()
        loss = lambda w: F.linear(x, w, layer.bias.detach()).tanh().pow(2).sum()  # noqa: E731
        gradient = torch.func.grad(loss)(weight)
        u, sigma = components(weight, grams.get("0.weight"))
        found = member.view(weight, gradient)[:, 0]
        step = 1e-6
        for j in range(5):
            along = torch.outer(u[:, j], u[:, j] @ weight) / sigma[j]
            numeric = (loss(weight + step * along) - loss(weight - step * along)) / (2 * step)
            assert float(found[j]) == pytest.approx(float(numeric), abs=1e-6)  # O(step²) and rounding / step


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(6, 5, bias=False),
        nn.Conv1d(4, 6, 3, padding=2, dilation=2),
        nn.Conv2d(4, 6, (3, 2), stride=2, padding_mode="circular", padding=1),
        nn.Conv3d(2, 4, 2),
    ],
)
def test_a_full_basis_changes_nothing(layer):
    layer = layer.double().requires_grad_(False)
    x = torch.randn(2, *{nn.Linear: (6,), nn.Conv1d: (4, 9), nn.Conv2d: (4, 7, 7)}.get(type(layer), (2, 4, 4, 4)))
    made = Factored.of(layer, components(layer.weight)[0])
    torch.testing.assert_close(made(x.double()), layer(x.double()), rtol=1e-12, atol=1e-12)
    assert not any(p.requires_grad for p in made.parameters())


# ----------------------------------------------------------------------------------------------------------- the whole


@pytest.mark.parametrize(("unit", "value"), [("macs", 0.5), ("params", 0.4), ("bytes", 0.5), ("sparsity", 0.7)])
def test_the_bill_is_what_was_said_and_files_come_back(unit, value, tmp_path):
    model = network()
    with nothing_left_behind(model, IMAGES):
        result = topiarist.prune(model, IMAGES, structure="rank", budget=Budget(**{unit: value}))
    small, plan = result.model, result.plan
    assert result.verification.passed
    before, after = topiarist.measure(model, IMAGES), topiarist.measure(small, IMAGES)
    assert plan.achieved["macs"] == pytest.approx(after.macs / before.macs, abs=1e-12)
    assert plan.achieved["params"] == pytest.approx(after.num_params / before.num_params, abs=1e-12)
    assert plan.achieved["bytes"] == pytest.approx(after.bytes_in_memory / before.bytes_in_memory, abs=1e-12)
    back = Plan.from_json(plan.to_json())
    assert back == plan
    assert all(torch.equal(back.bases[name], basis) for name, basis in plan.bases.items())
    loaded = topiarist.load(topiarist.save(small, tmp_path, plan=plan), build=network)
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(IMAGES), small.eval()(IMAGES), rtol=0, atol=0)
    for name, module in small.named_modules():
        if isinstance(module, Factored):
            weight = model.get_submodule(name).weight
            assert sum(layer.weight.numel() for layer in module) < weight.numel(), "two layers only where that is less"


def test_what_does_not_pay_stays_dense():
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 64)), torch.zeros(1, 8)
    first, second = Rank().units(topiarist.trace(model, x))
    planner_removed = {first.name: torch.arange(8) >= 4, second.name: torch.arange(8) >= 7}
    settled = Rank().settled(topiarist.trace(model, x), (first, second), planner_removed)
    assert (int(settled[first.name].sum()), int(settled[second.name].sum())) == (0, 1)  # 4 · 16 = 64, 7 · 72 < 512


def test_masked_and_shrunk_are_one_function_and_a_wrong_basis_is_caught():
    model = network()
    plan = topiarist.plan(model, IMAGES, structure="rank", budget=Budget(macs=0.5))
    small = topiarist.shrink(model, plan, IMAGES)
    assert topiarist.verify(model, small, plan, IMAGES).passed
    wrong = copy.deepcopy(small)
    next(m for m in wrong.modules() if isinstance(m, Factored)).register_forward_hook(lambda m, a, out: out * 1.001)
    assert not topiarist.verify(model, wrong, plan, IMAGES).passed
    masked = topiarist.mask(copy.deepcopy(in_float64(model)), plan)
    with torch.no_grad():
        shrunk = topiarist.shrink(in_float64(model), plan)(IMAGES.double())
        torch.testing.assert_close(masked(IMAGES.double()), shrunk, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_a_mask_holds_the_rank_through_training_and_comes_off(optimizer):
    model = network()
    before = copy.deepcopy(model.state_dict())
    plan = topiarist.plan(model, IMAGES, structure="rank", budget=Budget(macs=0.5))
    topiarist.mask(model, plan)
    topiarist.unmask(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()), "bit for bit"
    topiarist.mask(model, plan)
    step = optimizer(model.parameters(), lr=0.01)
    for inputs, targets in DATA:
        step.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        step.step()
    for name, basis in plan.bases.items():
        weight = model.get_parameter(name).detach().flatten(1).double()
        assert not torch.equal(weight, before[name].flatten(1).double())
        assert int((torch.linalg.svdvals(weight) > 1e-5).sum()) <= basis.shape[1]  # rounding of float32 is 1e-7
    topiarist.unmask(model, restore=False)


@pytest.mark.parametrize("saliency", ["l2", "gradient"])
def test_a_schedule_lowers_ranks_step_by_step(saliency):
    result = topiarist.prune(
        network(), IMAGES, structure="rank", saliency=saliency, budget=Budget(macs=0.4), schedule="linear", steps=3,
        data=DATA, loss=F.cross_entropy, recover="fine-tune",
    )  # fmt: skip
    assert result.verification.passed
    kept = [row["macs"] for row in result.curve]
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] <= 0.4


def test_weighting_by_data_keeps_more_of_the_outputs():
    model = network().double().eval()
    data = [(torch.randn(64, 3, 8, 8, dtype=torch.float64) * torch.tensor([5.0, 0.1, 0.1])[:, None, None], None)]
    errors = []
    for structure in (Rank(), Rank.weighted(model, [(data[0][0], torch.zeros(64))])):
        units = structure.units(topiarist.trace(model, data[0][0]))[0]
        basis = components(model[0].weight, structure.grams.get("0.weight"))[0][:, :2]
        assert units.name == "0.weight"
        made = Factored.of(model[0], basis)
        errors.append(float((made(data[0][0]) - model[0](data[0][0])).pow(2).sum().detach()))
    assert errors[1] < 0.9 * errors[0]


def test_only_stock_layers_that_use_their_weight_alone_are_offered():
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
            self.table, self.out = nn.Embedding(40, 16), nn.Linear(16, 40, bias=False)
            self.out.weight = self.table.weight
            self.plain, self.elsewhere = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, ids):
            x = self.plain(self.table(ids))
            x = self.attention(x, x, x, need_weights=False)[0]
            return self.out(F.linear(x, self.elsewhere.weight))

    units = Rank().units(topiarist.trace(Several(), torch.arange(6)[None]))
    assert [each.name for each in units] == ["plain.weight"]
    grouped = [each.name for each in Rank().units(topiarist.trace(network(), IMAGES))]
    assert grouped == ["0.weight", "2.weight", "4.weight", "7.weight", "9.weight"]


def test_what_makes_no_sense_is_refused(tmp_path):
    model = network()
    with pytest.raises(InputError, match="round_to is for structure 'channel'"):
        topiarist.plan(model, IMAGES, structure="rank", round_to=8, budget=Budget(macs=0.5))
    with pytest.raises(InputError, match="of which a lower rank pays"):
        topiarist.plan(nn.Sequential(nn.Linear(2, 2)), torch.zeros(1, 2), structure="rank", budget=Budget(macs=0.5))
    with pytest.raises(InputError, match="matches no module"):
        topiarist.plan(model, IMAGES, structure="rank", budget=Budget(macs=0.5), keep=["head"])
    with pytest.raises(InputError, match="does not have"):
        topiarist.mask(model, Plan("rank", {}, bases={"0.weight": torch.zeros(5, 2)}))
    with pytest.raises(InputError, match="have a rank"):
        Factored.of(model[5], torch.zeros(16, 2))
    plan = topiarist.plan(model, IMAGES, structure="rank", budget=Budget(macs=0.5))
    small = topiarist.shrink(model, plan)
    with pytest.raises(FormatError, match=r"rank|no module"):
        topiarist.load(topiarist.save(small, tmp_path), build=lambda: nn.Sequential(*[nn.ReLU() for _ in range(9)]))
    damaged = plan.to_json().replace('"dtype": "float32"', '"dtype": "object"')
    with pytest.raises(FormatError, match="damaged plan"):
        Plan.from_json(damaged)
