"""Criteria from curvature: against autograd's Hessian, exact removal on quadratics, and the golden cases."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import topiarist
from topiarist.errors import InputError
from topiarist.plan import Units
from topiarist.saliency import OBD, OBS, Fisher, Slices
from topiarist.stats import Subject, collect, collect_gradients, start
from topiarist.stats.diagonal import HessianDiagonal
from topiarist.stats.hessian import InverseHessian
from topiarist.testing.saliency import SaliencyContract


class TestOBD(SaliencyContract):
    @pytest.fixture
    def criterion(self):
        return OBD()


class TestOBS(SaliencyContract):
    def stats(self, need, there, generator):
        num, width = len(there.weights[0]), sum(w.shape[1] for w in there.weights)
        root = torch.randn(num, width, width, generator=generator, dtype=torch.float64)
        return root @ root.mT + torch.eye(width)

    @pytest.fixture
    def criterion(self):
        return OBS()


class TestOBSByBlocks(SaliencyContract):
    def stats(self, need, there, generator):
        num, width = len(there.weights[0]), sum(w.shape[1] for w in there.weights)
        return torch.rand(num, width, generator=generator, dtype=torch.float64) + 0.1

    @pytest.fixture
    def criterion(self):
        return OBS(whole=0)


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(n, 2, 4, 4, generator=generator, dtype=torch.float64), torch.arange(n) % 3) for n in (4, 6)]


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(27, 4), nn.Tanh(), nn.Linear(4, 3)
    ).double()  # fmt: skip


def collected(need, model, data, loss=F.cross_entropy, units=()):
    subject = Subject(model, tuple(units))
    found = start({need}, subject)[need]
    collect([found], subject, data, loss)
    return found


def jacobian(model, x):
    """Of the outputs by all parameters, by autograd: (examples, outputs, parameters)."""
    found = []
    for n in range(len(x)):
        out = model.eval()(x[n : n + 1]).flatten()
        grads = [torch.autograd.grad(o, [*model.parameters()], retain_graph=True, allow_unused=True) for o in out]
        found.append(
            torch.stack([
                torch.cat([
                    (torch.zeros_like(p) if g is None else g).flatten()
                    for g, p in zip(row, model.parameters(), strict=True)
                ])
                for row in grads
            ])
        )  # fmt: skip
    return torch.stack(found)


def gauss_newton(model, data):
    """Jᵀ (diag p − p pᵀ) J / N for cross-entropy, mean over batches."""
    total = 0
    for x, _ in data:
        j, p = jacobian(model, x), model(x).softmax(1).detach()
        h = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        total = total + torch.einsum("ncp,ncd,ndq->pq", j, h, j) / len(x)
    return total / len(data)


def flat(values):
    return torch.cat([v.flatten() for v in values.values()])


# ------------------------------------------------------------------ squares of examples and the diagonal


class Looping(nn.Module):
    """Control flow that looks at data, which no vmap can take."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x) * (2.0 if float(x.detach().sum()) > 1e9 else 1.0)


@pytest.mark.parametrize("wrap", [lambda net: net, Looping])
def test_squares_of_examples_are_a_loop(net, data, wrap):
    found = collected("squared gradients of examples", wrap(net), data).values
    ones = [
        collect_gradients(net, [(x[i : i + 1], y[i : i + 1])], F.cross_entropy) for x, y in data for i in range(len(x))
    ]
    for (_, value), name in zip(found.items(), ones[0], strict=True):
        torch.testing.assert_close(value, sum(g[name].square() for g in ones) / 10, rtol=1e-9, atol=1e-18)


@pytest.mark.parametrize("wrap", [lambda net: net, Looping])
def test_the_diagonal_is_that_of_the_gauss_newton_matrix(net, data, wrap):
    found = collected(HessianDiagonal("gauss-newton"), wrap(net), data).values
    exact = [(x, y) for x, y in data]
    expected = gauss_newton(net, [exact[0]]) / 2 + gauss_newton(net, [exact[1]]) / 2
    torch.testing.assert_close(flat(found), expected.diagonal(), rtol=1e-9, atol=1e-15)
    sums = collected(
        HessianDiagonal("gauss-newton"), net, [(torch.cat([x for x, _ in data]), torch.cat([y for _, y in data]))]
    )
    assert not torch.allclose(flat(sums.values), flat(found))  # batches of 4 and 6 have the same weight


def test_memory_is_bounded_by_chunks(net, data, monkeypatch):
    whole = flat(collected(HessianDiagonal(), net, data).values)
    monkeypatch.setattr("topiarist.stats.examples._ELEMENTS", 1)
    torch.testing.assert_close(flat(collected(HessianDiagonal(), net, data).values), whole, rtol=1e-12, atol=1e-18)


@pytest.mark.parametrize("loss", [F.cross_entropy, lambda out, y: F.mse_loss(out, F.one_hot(y, 3).double())])
@pytest.mark.parametrize("method", ["gauss-newton", "hutchinson"])
def test_for_a_linear_layer_the_diagonal_is_the_hessians(loss, method):
    """D1 (d). Probes average to it: their error is √(2 Σ_{j≠i} H_ij² / probes), and 5 of them are allowed."""
    torch.manual_seed(0)
    model, num = nn.Linear(4, 3).double(), 3000
    x, y = torch.randn(20, 4, dtype=torch.float64), torch.arange(20) % 3
    found = flat(collected(HessianDiagonal(method, num_probes=num), model, [(x, y)], loss).values)

    def of(flat_weights):
        return loss(F.linear(x, flat_weights[:12].view(3, 4), flat_weights[12:]), y)

    point = torch.cat([model.weight.flatten(), model.bias]).detach()
    hessian = torch.autograd.functional.hessian(of, point)
    if method == "gauss-newton":
        torch.testing.assert_close(found, hessian.diagonal(), rtol=1e-10, atol=0)
    else:
        others = hessian - hessian.diagonal().diag()
        assert bool(((found - hessian.diagonal()).abs() <= 5 * (others.square().sum(1) / num).sqrt() + 1e-12).all())
        assert not torch.allclose(found, hessian.diagonal(), rtol=1e-10)


def test_many_outputs_take_probes(data):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(32, 130)).double()
    found, probes = (collected(HessianDiagonal(m), net, data).values for m in ("auto", "hutchinson"))
    assert torch.equal(flat(found), flat(probes))
    assert bool((flat(found) >= 0).all())


def test_probes_leave_the_random_state_and_attention_goes_twice():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).double()
    data, state = [(torch.randn(3, 5, 8, dtype=torch.float64), None)], torch.get_rng_state()
    found = collected(HessianDiagonal("hutchinson"), layer, data, lambda out, y: out.square().mean())
    assert torch.equal(torch.get_rng_state(), state)
    assert float(flat(found.values).sum()) > 0


def test_obd_is_exact_on_a_diagonal_quadratic():
    """E = ½ Σ h (w − w₀)², at its minimum: the scores are the increase of the loss."""
    h = torch.tensor([1.0, 4.0, 0.5, 9.0], dtype=torch.float64)
    model = nn.Linear(4, 1, bias=False).double()
    data = [(h.sqrt().diag() * 2, model(h.sqrt().diag() * 2).detach())]  # mean over four examples
    loss = lambda out, y: (out - y).square().mean() / 2  # noqa: E731
    scores = candidates(OBD(), model, data, loss, torch.zeros(1, 4).double())["weight"]
    for i in range(4):
        left = copy.deepcopy(model)
        left.weight.data[0, i] = 0
        assert float(scores[i]) == pytest.approx(loss(left(data[0][0]), data[0][1]).item(), rel=1e-10)
    with pytest.raises(InputError, match="gauss-newton"):
        OBD("exact")
    with pytest.raises(InputError, match="num_probes"):
        OBD(num_probes=0)


def test_fisher_sees_nothing_at_zero_training_error():
    model = nn.Linear(3, 1, bias=False).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    data = [(x, model(x).detach())]
    assert float(candidates(Fisher(), model, data, F.mse_loss, x)["weight"].abs().max()) == 0
    assert float(candidates(OBD(), model, data, F.mse_loss, x)["weight"].min()) > 0


def candidates(criterion, model, data, loss, x, structure="weight"):
    planner = topiarist.planning.Planner.of(model, x, topiarist.structure.resolve(structure), (), None)
    return dict(planner.candidates(criterion, data, loss, {}).scores)


# ------------------------------------------------------------------ the surgeon


def quadratic(matrix, point):
    """A linear model, data and loss with this Hessian and minimum: E = ½ (w − w₀)ᵀ H (w − w₀)."""
    model = nn.Linear(len(point), 1, bias=False).double()
    x = torch.linalg.cholesky(matrix).mT * len(point) ** 0.5
    with torch.no_grad():
        model.weight.copy_(point)
    data = [(x, x @ point[:, None])]
    return model, data, lambda out, y: (out - y).square().mean() / 2


def test_the_golden_case_of_two_weights():
    matrix, point = torch.tensor([[2.0, 1.0], [1.0, 2.0]]).double(), torch.tensor([1.0, 2.0]).double()
    model, data, loss = quadratic(matrix, point)
    x = data[0][0]
    exact = OBS(damping=1e-14, relative=False)
    assert candidates(OBD(), model, data, loss, x)["weight"].tolist() == pytest.approx([1, 4], rel=1e-12)
    assert candidates(exact, model, data, loss, x)["weight"].tolist() == pytest.approx([0.75, 3], rel=1e-12)
    result = topiarist.prune(model, x, saliency=exact, budget=topiarist.Budget(sparsity=0.5), data=data, loss=loss)
    assert result.model.weight[0].tolist() == pytest.approx([0, 2.5], rel=1e-12)
    assert result.model.weight[0, 0].item() == 0
    assert loss(result.model(x), data[0][1]).item() == pytest.approx(0.75, rel=1e-12)
    assert model.weight[0].tolist() == [1, 2]


def test_the_matrix_is_that_of_the_woodbury_recursion(net, data):
    """D1 (b): H⁻¹ ← H⁻¹ − H⁻¹X Xᵀ H⁻¹ / (P + Xᵀ H⁻¹ X) over rows X = Sᵀ J, from I/α."""
    x, y = data[0]
    found = collected(InverseHessian(damping=0.1, relative=False), net, [(x, y)])
    j, p = jacobian(net, x), net(x).softmax(1).detach()
    inverse = torch.eye(j.shape[2], dtype=torch.float64) / 0.1
    for n in range(len(x)):
        root = torch.linalg.cholesky(torch.diag(p[n]) - p[n][:, None] * p[n] + 1e-14 * torch.eye(3))
        for row in root.mT @ j[n]:
            v = inverse @ row
            inverse = inverse - torch.outer(v, v) / (len(x) + row @ v)
    mine = torch.linalg.inv(found.groups[0].matrix[0])
    torch.testing.assert_close(mine, inverse, rtol=1e-8, atol=1e-8 * float(inverse.abs().max()))


def test_linear_regression_step_by_step_is_least_squares_on_what_is_left():
    """D1 (c): the weights are the solution on the surviving support, and the scores add up to the loss."""
    generator = torch.Generator().manual_seed(3)
    root = torch.randn(8, 8, generator=generator, dtype=torch.float64)
    model, data, loss = quadratic(root @ root.mT / 8 + 0.1 * torch.eye(8), torch.randn(8, generator=generator).double())
    (x, y), criterion, work, total = data[0], OBS(damping=1e-13, relative=False), model, 0.0
    for step in range(1, 7):
        gone = {"weight": work.weight == 0}
        planner = topiarist.planning.Planner.of(work, x, topiarist.structure.resolve("weight"), (), None)
        stats = planner.collect(criterion, data, loss, gone)
        scores = planner.candidates(criterion, None, None, {}, stats).scores["weight"]
        total += float(scores[work.weight[0] != 0].min())
        work = topiarist.prune(
            model, x, saliency=criterion, budget=topiarist.Budget(sparsity=step / 8), steps=step, schedule="linear",
            data=data, loss=loss,
        ).model  # fmt: skip
        weight = work.weight[0].detach()
        support = (weight != 0).numpy()
        assert support.sum() == 8 - step
        solution = np.linalg.lstsq(x.numpy()[:, support], y.numpy()[:, 0], rcond=None)[0]
        np.testing.assert_allclose(weight.numpy()[support], solution, rtol=1e-9, atol=1e-11)
        assert loss(work(x), y).item() == pytest.approx(total, rel=1e-9)


@pytest.mark.parametrize("structure", ["weight", "channel", "kernel", "block:3x5"])
def test_scores_are_the_least_increase_of_a_quadratic_for_units_of_any_size(net, data, structure):
    """½ δᵀHδ over all δ that take the unit to zero, by solving the constrained problem itself."""
    x = data[0][0]
    planner = topiarist.planning.Planner.of(net, x, topiarist.structure.resolve(structure), (), None)
    criterion = OBS(damping=0.05)
    stats = planner.collect(criterion, data, F.cross_entropy)
    (blocks,) = stats.values()
    assert blocks.is_whole
    h, weights = blocks.groups[0].matrix[0], torch.cat([p.detach().flatten() for p in net.parameters()])
    found = planner.candidates(criterion, None, None, {}, stats).scores
    for units in planner.units:
        for j in range(0, units.num, 7):
            plan = planner.make({u.name: (torch.arange(u.num) == j) & (u.name == units.name) for u in planner.units})
            masks = plan.masks(net)
            gone = torch.cat([masks.get(n, torch.zeros_like(p).bool()).flatten() for n, p in net.named_parameters()])
            lost = weights[gone]
            best = torch.linalg.solve(h[~gone][:, ~gone], h[~gone][:, gone] @ lost)
            delta = torch.zeros_like(weights)
            delta[gone], delta[~gone] = -lost, best
            assert float(found[units.name][j]) == pytest.approx(float(delta @ h @ delta / 2), rel=1e-8)
            changed = criterion.compensate(dict(net.named_parameters()), masks, stats)
            after = torch.cat([changed[n].flatten() for n, _ in net.named_parameters()])
            torch.testing.assert_close(after, weights + delta, rtol=1e-9, atol=1e-12)


def test_blocks_are_the_whole_where_the_matrix_has_no_more(data):
    """A linear model with one output: its rows are one block, and the others do not matter."""
    torch.manual_seed(0)
    model = nn.Linear(6, 1, bias=False).double()
    x, y = torch.randn(20, 6, dtype=torch.float64), torch.randn(20, 1, dtype=torch.float64)
    whole, blocks, halves = (
        candidates(OBS(whole=w, block=b), model, [(x, y)], F.mse_loss, x)["weight"] for w, b in ((6, 1), (0, 6), (0, 4))
    )
    torch.testing.assert_close(blocks, whole, rtol=1e-10, atol=0)
    assert not torch.allclose(halves, whole)


def test_blocks_that_end_before_the_tensor(net, data):
    """27 and 12 weights in blocks of 5: each score and each change is that of its block alone."""
    x, criterion = data[0][0], OBS(whole=0, block=5)
    planner = topiarist.planning.Planner.of(net, x, topiarist.structure.resolve("weight"), (), None)
    stats = planner.collect(criterion, data, F.cross_entropy)
    full = gauss_newton(net, data[:1]) * 4 / 10 + gauss_newton(net, data[1:]) * 6 / 10  # a mean over examples
    offset, found = 0, planner.candidates(criterion, None, None, {}, stats).scores
    for name, parameter in net.named_parameters():
        own = full[offset : offset + parameter.numel(), offset : offset + parameter.numel()]
        offset += parameter.numel()
        if name not in found:
            continue
        alpha, w = 0.01 * own.diagonal().mean(), parameter.detach().flatten()
        for first in range(0, len(w), 5):
            part = slice(first, first + 5)
            h = own[part, part] + alpha * torch.eye(len(w[part]))
            expected = w[part].square() / torch.linalg.inv(h).diagonal() / 2
            torch.testing.assert_close(found[name][part], expected, rtol=1e-8, atol=1e-15)
    generator = torch.Generator().manual_seed(0)
    removed = {n: torch.rand(net.get_parameter(n).shape, generator=generator) < 0.3 for n in found}
    changed = criterion.compensate(dict(net.named_parameters()), removed, stats)
    assert set(changed) == set(found)
    assert all(bool((changed[n][gone] == 0).all()) for n, gone in removed.items())
    scored = candidates(criterion, net, data, F.cross_entropy, x, "channel")
    assert all(bool((s > 0).all()) for s in scored.values())


def test_surgeon_before_damage_before_magnitude():
    """D1 (e): a tanh network trained to a minimum, fifteen weights less, one by one."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    x = torch.randn(200, 6, dtype=torch.float64)
    y = torch.tanh(x[:, :1] - x[:, 1:2]) + 0.5 * x[:, 2:3] * x[:, 3:4].sign()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=1, max_iter=300, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.mse_loss(model(x), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    losses = [
        F.mse_loss(
            topiarist.prune(
                model, x, saliency=s, budget=topiarist.Budget(sparsity=15 / 56), steps=15, schedule="linear",
                data=[(x, y)], loss=F.mse_loss,
            ).model(x),
            y,
        ).item()
        for s in (OBS(damping=1e-2, relative=False), "obd", "l1")
    ]  # fmt: skip
    assert losses == sorted(losses), losses


def test_a_surgeon_without_damping_is_refused():
    with pytest.raises(InputError, match="damping"):
        OBS(damping=0)
    assert OBS()(Slices(Units("w", 2, ()), ())).tolist() == [0, 0]


def test_what_is_removed_stays_removed_and_small_networks_shrink(net, data):
    x = data[0][0]
    options = {"data": data, "loss": F.cross_entropy, "saliency": "obs", "schedule": "linear"}
    result = topiarist.prune(net, x, structure="channel", budget=topiarist.Budget(macs=0.6), steps=2, **options)
    assert result.verification.passed
    sparse = topiarist.prune(net, x, budget=topiarist.Budget(sparsity=0.5), steps=3, **options)
    weights = [p for n, p in sparse.model.named_parameters() if n in sparse.plan.removed]
    assert sum(int((p == 0).sum()) for p in weights) == sparse.plan.num_removed


@pytest.mark.parametrize("broken", ["half", "compensation", "damping"])
def test_the_golden_case_catches_a_broken_surgeon(monkeypatch, broken):
    if broken == "half":
        whole = OBS.__call__
        monkeypatch.setattr(OBS, "__call__", lambda self, slices: 2 * whole(self, slices))
    elif broken == "compensation":
        monkeypatch.setattr(OBS, "compensate", lambda self, weights, removed, stats: {})
    else:
        monkeypatch.setattr(
            "topiarist.stats.hessian._restricted", lambda matrix, out: matrix + torch.eye(matrix.shape[1])
        )
    with pytest.raises(AssertionError):
        test_the_golden_case_of_two_weights()


def test_the_diagonal_catches_roots_that_forget_the_other_classes(net, data, monkeypatch):
    from topiarist.stats import examples

    roots = examples.output_roots
    monkeypatch.setattr("topiarist.stats.diagonal.output_roots", lambda batch: roots(batch)[:, :1])
    with pytest.raises(AssertionError):
        test_the_diagonal_is_that_of_the_gauss_newton_matrix(net, data, lambda net: net)
