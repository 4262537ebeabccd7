"""Penalties: what each adds to the gradient, against loops over the units, autograd and finite differences."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import topiarist
from topiarist import Budget
from topiarist.errors import InputError
from topiarist.mask import GroupLasso, GrowingL2, ImportanceL2, ScaleL1, units_in
from topiarist.mask.units import squared_norms
from topiarist.testing.zoo import build

NETS = ["vgg_bn", "resnet_option_b", "vit", "depthwise", "grouped_query_attention"]


def network(name="vgg_bn"):
    model, inputs = build(name)
    return model.double(), inputs.double()


def entries(units, model):
    """Per unit what it has, as pairs (name of a parameter, flat indices), by looking at every entry in a loop."""
    parameters = dict(model.named_parameters())
    if units.members[0].dim is None:
        (member,) = units.members
        unit = torch.arange(units.num) if member.unit is None else member.unit
        return [[(member.tensor, i) for i in (unit == j).nonzero().flatten().tolist()] for j in range(units.num)]
    found = []
    for j in range(units.num):
        mine = []
        for member in units.members:
            if member.tensor not in parameters:
                continue
            index = np.arange(parameters[member.tensor].numel()).reshape(parameters[member.tensor].shape)
            for position, unit in enumerate(member.unit.tolist()):
                if unit == j:
                    mine.extend((member.tensor, i) for i in index.take(position, member.dim).ravel().tolist())
        found.append(mine)
    return found


def zero_grads(model):
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)


def values(model, what=lambda p: p):
    return {name: what(p).detach().numpy().ravel().copy() for name, p in model.named_parameters()}


@pytest.mark.parametrize("structure", ["channel", "block:2x2", "weight"])
@pytest.mark.parametrize("name", NETS)
def test_norms_of_units_are_those_of_their_entries(name, structure):
    model, inputs = network(name)
    _, all_units = units_in(model, inputs, structure)
    if structure != "channel":
        all_units = all_units[:2]
    flat = values(model)
    for units in all_units:
        expected = [sum(flat[n][i] ** 2 for n, i in mine) for mine in entries(units, model)]
        torch.testing.assert_close(squared_norms(units, dict(model.named_parameters())).detach().numpy(),
                                   np.array(expected), rtol=1e-12, atol=0)  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_group_lasso_in_its_three_forms(name):
    model, inputs = network(name)
    _, all_units = units_in(model, inputs)
    lasso, flat = GroupLasso(all_units, 0.3), values(model)
    term, gradient = 0.0, {n: np.zeros_like(v) for n, v in flat.items()}
    for units in all_units:
        for mine in entries(units, model):
            norm = math.sqrt(sum(flat[n][i] ** 2 for n, i in mine))
            term += 0.3 * math.sqrt(len(mine)) * norm
            for n, i in mine:
                gradient[n][i] += 0.3 * math.sqrt(len(mine)) * flat[n][i] / norm
    assert float(lasso.term(model).detach()) == pytest.approx(term, rel=1e-12)
    zero_grads(model)
    lasso.term(model).backward()
    by_autograd = values(model, lambda p: p.grad)
    zero_grads(model)
    lasso(model)
    for n, found in values(model, lambda p: p.grad).items():
        np.testing.assert_allclose(found, gradient[n], rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(by_autograd[n], gradient[n], rtol=1e-10, atol=1e-14)


def test_the_proximal_step_minimises_what_it_should():
    """argmin_v ½‖v − w‖² + ηλ√n ‖v‖ along the ray of w: no other length is better; small units vanish."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    with torch.no_grad():
        model[0].weight[0] *= 0.01
        model[0].bias[0] = 0.001
        model[2].weight[:, 0] *= 0.01
    _, all_units = units_in(model, torch.zeros(1, 3, dtype=torch.float64))
    (units,), before = all_units, values(model)
    GroupLasso(all_units, 0.5).shrink(model, lr=0.2)
    after = values(model)
    for j, mine in enumerate(entries(units, model)):
        w, v = (np.array([x[n][i] for n, i in mine]) for x in (before, after))

        def cost(part, w=w):
            return 0.5 * ((part - 1) ** 2) * (w @ w) + 0.1 * math.sqrt(len(w)) * part * math.sqrt(w @ w)

        grid = np.linspace(0, 1, 100_001)
        best = grid[np.argmin(cost(grid))]
        np.testing.assert_allclose(v, best * w, atol=1e-5 * np.abs(w).max())
        assert (not v.any()) == (j == 0)
    assert np.array_equal(before["2.bias"], after["2.bias"]), "what no unit has stays"


def test_units_at_zero_are_left_there():
    model, inputs = network("mlp")
    _, all_units = units_in(model, inputs)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    lasso = GroupLasso(all_units, 1.0)
    zero_grads(model)
    lasso.term(model).backward()
    lasso(model)
    lasso.shrink(model, lr=0.1)
    assert all(bool((p.grad == 0).all()) and bool((p == 0).all()) for p in model.parameters())


def test_slimming_adds_the_sign_of_the_scales_and_nothing_else():
    model, inputs = network()
    _, all_units = units_in(model, inputs)
    penalty = ScaleL1(model, all_units, 1e-2)
    norms = [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert penalty.names == tuple(f"{n}.weight" for n in norms)
    with torch.no_grad():
        model.get_submodule(norms[0]).weight[:3] = torch.tensor([-0.5, 0.0, 2.0])
    model(inputs).square().sum().backward()
    before = values(model, lambda p: p.grad)
    penalty(model)
    for n, found in values(model, lambda p: p.grad).items():
        more = 1e-2 * np.sign(values(model)[n]) if n in penalty.names else 0
        np.testing.assert_array_equal(found, before[n] + more)


def test_slimming_drives_scales_to_zero_where_plain_training_does_not():
    def small(strength):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))
        x = torch.randn(128, 8)
        _, all_units = units_in(model, x)
        penalty, optimizer = ScaleL1(model, all_units, strength), torch.optim.SGD(model.parameters(), lr=0.05)
        for _ in range(400):
            optimizer.zero_grad()
            (model(x).squeeze(1) - x[:, 0]).square().mean().backward()
            penalty(model)
            optimizer.step()
        return float((model[1].weight.abs() < 0.01).float().mean())

    assert small(0.0) == 0
    assert small(0.1) > 0.3


def test_without_a_scale_there_is_nothing_to_press_on():
    model, inputs = network("mlp")
    _, all_units = units_in(model, inputs)
    with pytest.raises(InputError, match="GroupLasso"):
        ScaleL1(model, all_units, 1e-4)


@pytest.mark.parametrize("name", NETS)
def test_importance_weights_every_unit_as_published(name):
    model, inputs = network(name)
    _, all_units = units_in(model, inputs)
    penalty, flat = ImportanceL2(model, all_units, 5e-4), values(model)
    gradient = {n: np.zeros_like(v) for n, v in flat.items()}
    for units in all_units:
        members = sum(1 for m in units.members if m.tensor in flat)
        importance = [sum(flat[n][i] ** 2 for n, i in mine) / members for mine in entries(units, model)]
        for mine, own in zip(entries(units, model), importance, strict=True):
            factor = 2 ** (4 * (max(importance) - own) / (max(importance) - min(importance)))
            for n, i in mine:
                gradient[n][i] += 5e-4 * factor * flat[n][i]
    zero_grads(model)
    penalty(model)
    for n, found in values(model, lambda p: p.grad).items():
        np.testing.assert_allclose(found, gradient[n], rtol=1e-9, atol=1e-16)


def test_the_importance_is_that_of_the_last_update():
    model, inputs = network("mlp")
    _, all_units = units_in(model, inputs)
    penalty = ImportanceL2(model, all_units, 1.0)
    before = {n: f.clone() for n, f in penalty.factors.items()}
    with torch.no_grad():
        model[0].weight[0] *= 100
    assert all(torch.equal(penalty.factors[n], f) for n, f in before.items())
    penalty.update(model)
    assert float(penalty.factors["0.weight:0"][0]) == 1.0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    penalty.update(model)
    assert bool((penalty.factors["0.weight:0"] == 1).all()), "units that are all alike"


@pytest.mark.parametrize("structure", ["weight", "channel"])
def test_growing_l2_grows_on_what_will_go(structure):
    model, inputs = network()
    plan = topiarist.plan(model, inputs, structure=structure, budget=Budget(sparsity=0.5))
    penalty, gone = GrowingL2(model, plan, every=2, delta=0.1, ceiling=0.25), plan.masks(model)
    for step, strength in enumerate([0, 0.1, 0.1, 0.2, 0.2, 0.25, 0.25], 1):
        zero_grads(model)
        if step == 4:
            state, penalty = penalty.state_dict(), GrowingL2(model, plan, every=2, delta=0.1, ceiling=0.25)
            penalty.load_state_dict(state)
        penalty(model)
        assert penalty.strength == pytest.approx(strength)
        for n, p in model.named_parameters():
            torch.testing.assert_close(p.grad, strength * p * gone.get(n, torch.zeros_like(p)), rtol=1e-12, atol=0)
    assert penalty.is_full


def test_a_model_pressed_on_loses_less_when_it_is_cut():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1)).double()
    x = torch.randn(256, 8, dtype=torch.float64)
    y = torch.tanh(x[:, :1]) * x[:, 1:2]

    def change(trained, plan):
        with torch.no_grad():
            whole = trained(x)
            return float((topiarist.shrink(trained, plan, x)(x) - whole).abs().mean())

    plan = topiarist.plan(model, x, structure="channel", budget=Budget(sparsity=0.75))
    penalty = GrowingL2(model, plan, every=5, delta=1e-2)
    plain = copy.deepcopy(model)
    for trained, press in ((plain, lambda m: None), (model, penalty)):
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.05)
        for _ in range(600):
            optimizer.zero_grad()
            (trained(x) - y).square().mean().backward()
            press(trained)
            optimizer.step()
    assert penalty.is_full
    assert change(model, plan) < 0.02 * change(plain, plan)


def test_frozen_parameters_and_those_without_a_gradient():
    model, inputs = network("mlp")
    _, all_units = units_in(model, inputs)
    model[0].weight.requires_grad_(False)
    for penalty in (GroupLasso(all_units, 0.1), ImportanceL2(model, all_units, 0.1)):
        model.zero_grad(set_to_none=True)
        penalty(model)
        assert model[0].weight.grad is None
        assert bool((model[2].weight.grad != 0).all())


@pytest.mark.parametrize("wrong", [-1.0, math.nan, math.inf])
def test_nonsense_is_refused(wrong):
    model, inputs = network()
    _, all_units = units_in(model, inputs)
    plan = topiarist.plan(model, inputs, budget=Budget(sparsity=0.5))
    for make in (
        lambda: ScaleL1(model, all_units, wrong),
        lambda: GroupLasso(all_units, wrong),
        lambda: GroupLasso(all_units, 1.0).shrink(model, wrong),
        lambda: ImportanceL2(model, all_units, wrong),
        lambda: GrowingL2(model, plan, delta=wrong),
        lambda: GrowingL2(model, plan, ceiling=wrong),
        lambda: GrowingL2(model, plan, every=0),
    ):
        with pytest.raises(InputError):
            make()
