"""Criteria of single weights in a layer: Wanda, SparseGPT, OBC, against exact solutions and one another."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import topiarist
from topiarist.errors import InputError
from topiarist.plan import Member, Units
from topiarist.planning import Planner
from topiarist.saliency import OBC, Slices, SparseGPT, Wanda, resolve
from topiarist.saliency.layers import Quotas
from topiarist.saliency.obc import least_squares, trace
from topiarist.stats import Watch
from topiarist.stats.layout import Layout
from topiarist.stats.weight_inputs import InputGram, InputNorms, WeightGrams, WeightNorms
from topiarist.structure import Weight
from topiarist.testing.saliency import SaliencyContract

BUDGET = topiarist.Budget


def drawn(num, generator):
    x = torch.randn(40, num, generator=generator, dtype=torch.float64)
    return x.mT @ x / 40


class TestWanda(SaliencyContract):
    @pytest.fixture(params=["output", "layer"])
    def criterion(self, request):
        return Wanda(request.param)

    def stats(self, need, there, generator):
        norms = tuple(torch.rand(w.shape, generator=generator, dtype=torch.float64) for w in there.weights)
        return InputNorms(norms, tuple(torch.zeros(w.shape).long() for w in there.weights))


class OfLayers(SaliencyContract):
    equivariant = False  # where a weight stands in its layer says what it is multiplied by

    def slices(self, criterion, widths):
        generator = torch.Generator().manual_seed(sum(widths))
        weight = torch.randn(2, 3, generator=generator, dtype=torch.float64)
        layout = Layout((2, 3), (1, 2, 3), (0, 1, 2), 2)
        gram = {"w": InputGram(drawn(3, generator)[None], 40, layout)}
        return Slices(Units("w", 6, (Member("w"),)), (weight.reshape(6, 1),), {WeightGrams: gram})


class TestSparseGPT(OfLayers):
    @pytest.fixture(params=[None, "1:3"])
    def criterion(self, request):
        return SparseGPT(pattern=request.param)


class TestOBC(OfLayers):
    @pytest.fixture(params=[None, "2:3"])
    def criterion(self, request):
        return OBC(pattern=request.param)


# ------------------------------------------------------------------ layouts

LAYERS = [
    (nn.Linear(4, 3, bias=False), (5, 4)),
    (nn.Conv2d(4, 6, 3, groups=2, stride=2, padding=1, bias=False), (2, 4, 7, 7)),
    (nn.Conv1d(4, 4, 2, groups=4, bias=False), (2, 4, 7)),
    (nn.ConvTranspose2d(4, 6, 1, groups=2, bias=False), (2, 4, 3, 3)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_rows_times_matrix_are_the_outputs(layer, shape):
    torch.manual_seed(0)
    layer, found, x = layer.double(), [], torch.randn(shape, dtype=torch.float64)
    with torch.no_grad(), Watch(layer, found.append):
        out = layer(x)
    layout = Layout.of(found[0], tuple(layer.weight.shape))
    matrix = layout.matrix(layer.weight.detach())
    product = torch.einsum("rgi,goi->rgo", found[0].rows(), matrix).flatten(1)
    torch.testing.assert_close(product, out.movedim(1, -1).reshape(product.shape), rtol=1e-12, atol=1e-12)
    assert torch.equal(layout.weight(matrix), layer.weight)
    per_input = torch.arange(float(matrix.shape[0] * matrix.shape[2])).view(matrix.shape[0], -1)
    assert torch.equal(layout.matrix(layout.inputs(per_input)), per_input[:, None].expand(matrix.shape))
    outputs = torch.arange(matrix.shape[0] * matrix.shape[1]).view(*matrix.shape[:2], 1)
    assert torch.equal(layout.matrix(layout.rows()), outputs.expand(matrix.shape))


def test_runs_of_a_convolution_are_channels_at_one_place():
    layout = Layout((2, 4, 1, 2), (1, 2, 4, 1, 2), (0, 1, 2, 3, 4), 2)
    assert layout.runs(2).tolist() == [0, 1, 0, 1, 2, 3, 2, 3]


# ------------------------------------------------------------------ Wanda


def scores(model, data, criterion):
    planner = Planner.of(model, data[0], Weight(), (), None)
    return dict(planner.candidates(resolve(criterion), data, None, {}).scores)


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_wanda_is_weight_times_norm(layer, shape):
    torch.manual_seed(0)
    layer, data = layer.double(), [torch.randn(shape, dtype=torch.float64) for _ in range(2)]
    found = scores(layer, data, Wanda("layer"))["weight"].view(layer.weight.shape)
    expected, weight = torch.zeros_like(layer.weight), layer.weight.detach().clone()
    for index in itertools.product(*map(range, weight.shape)):  # the energy of what one entry adds to the output
        with torch.no_grad():
            layer.weight.zero_()[index] = 1.0
            expected[index] = sum(layer(x).square().sum() for x in data).sqrt()
    torch.testing.assert_close(found, weight.abs() * expected.detach(), rtol=1e-10, atol=1e-12)


def net(num_in=8, num_out=6):
    torch.manual_seed(0)
    return nn.Linear(num_in, num_out).double(), torch.randn(30, num_in, dtype=torch.float64) * torch.arange(
        1, num_in + 1
    )


def removed(model, x, criterion, budget=0.5):
    plan = topiarist.plan(model, x, saliency=criterion, data=[x], budget=BUDGET(sparsity=budget))
    return plan.removed["weight"].view(model.weight.shape)


@pytest.mark.parametrize("sparsity", [0.25, 0.5, 0.875])
def test_every_row_loses_exactly_its_share(sparsity):
    model, x = net()
    with torch.no_grad():
        model.weight[0] *= 100  # a layer-wide comparison would leave this row whole
    gone = removed(model, x, "wanda", sparsity)
    assert gone.sum(1).tolist() == [int(sparsity * 8)] * 6
    metric = (model.weight.abs() * x.norm(dim=0)).detach()
    for row, of_row in zip(gone, metric, strict=True):
        assert set(row.nonzero().flatten().tolist()) == set(of_row.argsort()[: int(sparsity * 8)].tolist())
    assert removed(model, x, Wanda("layer"), sparsity).sum(1).unique().numel() > 1


def test_equal_norms_are_magnitude_per_row():
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3).double(), torch.eye(4, dtype=torch.float64)
    gone = removed(model, x, "wanda")
    assert torch.equal(gone, model.weight.abs() <= model.weight.abs().kthvalue(2, dim=1, keepdim=True).values)


def test_rescaling_an_input_changes_nothing():
    model, x = net()
    before = removed(model, x, "wanda", 0.3)
    with torch.no_grad():
        model.weight[:, 2] /= 64.0
    x[:, 2] *= 64.0
    assert torch.equal(removed(model, x, "wanda", 0.3), before)
    assert not torch.equal(removed(model, x, "l2", 0.3), before)


def test_diagonal_hessians_make_wanda_of_obs():
    """With uncorrelated inputs w² / [H⁻¹]_jj ∝ (|w| ‖X_j‖)²: the same order in each row."""
    torch.manual_seed(0)
    norms = torch.rand(5, dtype=torch.float64) + 0.1
    model, x = nn.Linear(5, 3).double(), torch.diag(norms)
    losses, metric = scores(model, [x], OBC(damping=0.0))["weight"], scores(model, [x], Wanda("layer"))["weight"]
    assert torch.equal(losses.view(3, 5).argsort(1), metric.view(3, 5).argsort(1))
    torch.testing.assert_close(losses, metric.square() / 5, rtol=1e-12, atol=0)


# ------------------------------------------------------------------ the pilot: 64 × 256, correlated inputs


@pytest.fixture(scope="module")
def pilot():
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(256, 256, generator=generator, dtype=torch.float64) / 16
    scale = torch.rand(256, generator=generator, dtype=torch.float64) * 3
    x = (torch.randn(2048, 256, generator=generator, dtype=torch.float64) @ mix + 0.3 * torch.randn(
        2048, 256, generator=generator, dtype=torch.float64)) * scale  # fmt: skip
    layer = nn.Linear(256, 64, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(64, 256, generator=generator, dtype=torch.float64) / 16)
    return layer, x


def error(layer, x, criterion, budget=0.5, **options):
    result = topiarist.prune(layer, x[:2], saliency=criterion, data=[x], budget=BUDGET(sparsity=budget), **options)
    gone = result.plan.removed["weight"].view(layer.weight.shape)
    assert bool((result.model.weight[gone] == 0).all())
    with torch.no_grad():
        return float((result.model(x) - layer(x)).square().sum() / layer(x).square().sum()), result


def test_the_ordering_of_the_pilot(pilot):
    layer, x = pilot
    found = [error(layer, x, criterion)[0] for criterion in ("l2", "wanda", "sparsegpt")]
    assert found[0] > found[1] > found[2]
    small = nn.Linear(256, 8, bias=False).double()
    with torch.no_grad():
        small.weight.copy_(layer.weight[:8])
    of_rows = [error(small, x, criterion)[0] for criterion in ("l2", "wanda", "sparsegpt", OBC())]
    assert of_rows[0] > of_rows[1] > of_rows[2] > of_rows[3]


# ------------------------------------------------------------------ SparseGPT and OBC


def problem(num=9, rows=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(50, num, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(num, num, generator=generator, dtype=torch.float64)
    return torch.randn(rows, num, generator=generator, dtype=torch.float64), x, x.mT @ x / 50


def exact(weight, x, gone):
    """Row by row, numpy's least squares on what is left."""
    out = np.zeros(weight.shape)
    for r, row in enumerate(weight.numpy()):
        kept = ~gone[r].numpy()
        out[r, kept] = np.linalg.lstsq(x.numpy()[:, kept], x.numpy() @ row, rcond=None)[0]
    return out


def test_least_squares_is_that_of_numpy():
    weight, x, gram = problem()
    gone = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    gone[0] = False
    found = least_squares(weight, gram, gone)
    np.testing.assert_allclose(found, exact(weight, x, gone), rtol=1e-8, atol=1e-10)
    assert torch.equal(found[0], weight[0])


def test_greedy_losses_are_those_of_refitting_after_each_removal():
    """Each removal is the one after which the best fit on what is left is best; its loss is what the fit gets worse."""
    weight, x, gram = problem(6, 3)
    found = trace(weight, gram.inverse(), torch.zeros(6, dtype=torch.bool))
    for row, losses in zip(weight, found, strict=True):
        gone, before, last = torch.zeros(1, 6, dtype=torch.bool), 0.0, 0.0
        for p in losses.argsort().tolist():
            fits = {}
            for q in (~gone[0]).nonzero().flatten().tolist():
                tried = gone.clone()
                tried[0, q] = True
                rest = torch.tensor(exact(row[None], x, tried))[0] - row
                fits[q] = float(rest @ gram @ rest)
            assert min(fits, key=fits.get) == p
            assert float(losses[p]) == pytest.approx(max(fits[p] - before, last), rel=1e-7)
            last, before = float(losses[p]), fits[p]
            gone[0, p] = True


def test_obc_leaves_the_least_squares_solution():
    weight, x, _ = problem(12, 5)
    layer = nn.Linear(12, 5, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(weight)
    _, result = error(layer, x, OBC(damping=0.0))
    gone = result.plan.removed["weight"].view(5, 12)
    np.testing.assert_allclose(result.model.weight.detach(), exact(weight, x, gone), rtol=1e-8, atol=1e-9)


def test_where_sparsegpt_is_the_least_squares_solution():
    weight, x, gram = problem(12, 5)
    leading = torch.arange(12) < torch.tensor([[0], [1], [4], [7], [12]])  # all that goes stands before what stays
    found, _, _ = SparseGPT(damping=0.0, block=5).solve(weight, gram, leading)
    np.testing.assert_allclose(found, exact(weight, x, leading), rtol=1e-8, atol=1e-8)
    mixed = torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    found, _, _ = SparseGPT(damping=0.0).solve(weight, gram, mixed)
    best = torch.tensor(exact(weight, x, mixed))
    losses = [float(((w - weight) @ gram * (w - weight)).sum()) for w in (best, found, weight.masked_fill(mixed, 0.0))]
    assert losses[0] < losses[1] * (1 - 1e-3)
    assert losses[1] < losses[2]


def reference(weight, gram, damping, block, sparsity):
    """The algorithm of the paper, column by column, in NumPy."""
    w, n = weight.numpy().copy(), len(gram)
    u = np.linalg.cholesky(np.linalg.inv(gram.numpy() + damping * np.diag(gram).mean() * np.eye(n))).T
    for start in range(0, n, block):
        end = min(n, start + block)
        costs = w[:, start:end] ** 2 / np.diag(u)[start:end] ** 2
        mask = costs <= np.sort(costs.flatten())[int(costs.size * sparsity + 0.5) - 1]
        for c in range(start, end):
            e = np.where(mask[:, c - start], w[:, c], 0) / u[c, c]
            w[:, c:] -= np.outer(e, u[c, c:])
            w[mask[:, c - start], c] = 0
    return w


@pytest.mark.parametrize("block", [3, 4, 128])
def test_sparsegpt_is_the_published_algorithm(block):
    weight, x, gram = problem(12, 4)
    layer = nn.Linear(12, 4, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(weight)
    result = error(layer, x, SparseGPT(block=block))[1]
    expected = reference(weight, gram, 0.01, block, 0.5)
    np.testing.assert_allclose(result.model.weight.detach(), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("criterion", [SparseGPT(damping=0.0, block=50), OBC(damping=0.0)])
def test_an_identity_hessian_is_magnitude(criterion):
    torch.manual_seed(0)
    model = nn.Linear(6, 5, bias=False).double()
    x = torch.eye(6, dtype=torch.float64)
    assert torch.equal(removed(model, x, criterion), removed(model, x, "l2"))


@pytest.mark.parametrize("make", [lambda p: SparseGPT(pattern=p, block=3), lambda p: OBC(pattern=p)])
def test_patterns_hold_in_every_run(make):
    weight, x, _ = problem(10, 5)
    layer = nn.Linear(10, 5, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(weight)
    quotas = Quotas.of("2:4", Layout((5, 10), (1, 5, 10), (0, 1, 2), 2))
    assert quotas.most.tolist() == [2, 2, 1]
    gone = removed(layer, x, make("2:4"), quotas.total / 10)
    for run in ([0, 1, 2, 3], [4, 5, 6, 7]):
        assert gone[:, run].sum(1).tolist() == [2] * 5
    free = removed(layer, x, make(None), 0.5)
    assert free[:, :4].sum(1).unique().numel() > 1


def test_two_of_four_keeps_the_ordering(pilot):
    layer, x = pilot
    small = nn.Linear(256, 8, bias=False).double()
    with torch.no_grad():
        small.weight.copy_(layer.weight[:8])
    found = [error(small, x, criterion)[0] for criterion in (SparseGPT(pattern="2:4"), OBC(pattern="2:4"))]
    assert found[0] > found[1]
    assert found[0] > error(small, x, SparseGPT())[0]


def test_convolutions_and_groups_are_mended():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.ReLU(), nn.Conv2d(6, 4, 3)).double()
    x = torch.randn(10, 4, 6, 6, dtype=torch.float64)

    def loss(criterion):
        result = topiarist.prune(
            model, x, saliency=criterion, allocation="uniform", data=[x], budget=BUDGET(sparsity=0.5)
        )
        return float((result.model(x) - model(x)).detach().square().mean())

    found = [loss(c) for c in ("l2", "wanda", "sparsegpt", "obc")]
    assert found[0] > found[2] > found[3]
    assert found[1] > found[2]


def test_dead_inputs_lose_their_weights_first():
    weight, x, _ = problem(8, 3)
    x[:, [2, 5]] = 0.0
    layer = nn.Linear(8, 3, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(weight)
    for criterion in (SparseGPT(sparsity=0.25), OBC(), OBC(damping=0.0), "wanda"):
        assert removed(layer, x, criterion, 0.25)[:, [2, 5]].all(), criterion


@pytest.mark.parametrize("criterion", [SparseGPT(damping=0.0), OBC(damping=0.0)])
def test_fewer_samples_than_inputs_are_damped(criterion):
    weight, x, _ = problem(12, 4)
    layer = nn.Linear(12, 4, bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(weight)
    x = x[:5]
    assert error(layer, x, criterion)[0] < error(layer, x, "l2")[0] / 10


@pytest.mark.parametrize("make", [
    lambda: SparseGPT(sparsity=1.5), lambda: SparseGPT(block=0), lambda: SparseGPT(pattern="4:2"), lambda: OBC(-1.0),
    lambda: OBC(pattern="x"), lambda: Wanda("row"),
])  # fmt: skip
def test_bad_options_are_refused(make):
    with pytest.raises(InputError):
        make()


def test_messages_name_what_is_needed():
    with pytest.raises(InputError, match=r"needs WeightGrams: pass data"):
        topiarist.plan(nn.Linear(3, 2), torch.zeros(1, 3), saliency="sparsegpt", budget=BUDGET(sparsity=0.5))


@pytest.mark.parametrize("word", ["obc", "sparsegpt"])
def test_larger_units_are_refused(word):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(9, 3)
    with pytest.raises(InputError, match="structure='weight'"):
        topiarist.plan(model, x, structure="channel", saliency=word, data=[x], budget=BUDGET(sparsity=0.5))


def test_wanda_adds_up_over_channels():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    x = torch.randn(9, 3, dtype=torch.float64)
    found = Planner.of(model, x, topiarist.structure.Channel(), (), None).candidates(Wanda(), [x], None, {})
    hidden = model[1](model[0](x)).detach()
    expected = (model[0].weight.abs() @ x.norm(dim=0)) + model[2].weight.abs().sum(0) * hidden.norm(dim=0)
    torch.testing.assert_close(found.scores["0.weight:0"], expected.detach(), rtol=1e-12, atol=0)
    assert WeightNorms in Wanda.needs


# ------------------------------------------------------------------ one layer after the other


def deep():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 3)).double()


@pytest.mark.parametrize("allocation", ["uniform", "global"])
def test_in_turn_each_layer_sees_what_those_before_it_leave(allocation):
    """Against a loop over layers: score, remove, mend, run the data through, and on to the next."""
    model, x = deep(), torch.randn(60, 8, dtype=torch.float64)
    options = {
        "saliency": SparseGPT(damping=0.01),
        "data": [x],
        "budget": BUDGET(sparsity=0.5),
        "allocation": allocation,
    }
    found = topiarist.prune(model, x, sequential=True, **options)
    h, by_hand = x, deep()
    for i in (0, 2, 4):
        layer, gone = by_hand[i], found.plan.removed[f"{i}.weight"].view(by_hand[i].weight.shape)
        gram = h.mT @ h / len(h)
        solved, chosen, _ = SparseGPT().solve(layer.weight.detach(), gram)
        if allocation == "uniform":
            assert torch.equal(chosen, gone)
        solved = SparseGPT().solve(layer.weight.detach(), gram, gone)[0]
        torch.testing.assert_close(found.model[i].weight.detach(), solved, rtol=1e-9, atol=1e-10)
        with torch.no_grad():
            layer.weight.copy_(solved)
            h = torch.relu(layer(h))
    at_once = topiarist.prune(model, x, **options)
    assert not torch.equal(at_once.model[4].weight, found.model[4].weight)
    assert at_once.plan.num_removed == found.plan.num_removed


def test_in_turn_only_one_layers_statistics_are_there_at_a_time(monkeypatch):
    started = []
    init = WeightGrams.__init__

    def counted(self, subject):
        started.append(len(subject.units))
        init(self, subject)

    monkeypatch.setattr(WeightGrams, "__init__", counted)
    x = torch.randn(20, 8, dtype=torch.float64)
    topiarist.prune(
        deep(), x, saliency="obc", allocation="uniform", sequential=True, data=[x], budget=BUDGET(sparsity=0.5)
    )
    assert started == [1, 1, 1]


def test_channels_go_in_turn_too():
    model, x = deep(), torch.randn(20, 8, dtype=torch.float64)
    result = topiarist.prune(
        model, x, structure="channel", saliency="activation", allocation="uniform", sequential=True, data=[x], steps=2,
        schedule="linear", budget=BUDGET(sparsity=0.5),
    )  # fmt: skip
    assert [m.out_features for m in result.model if isinstance(m, nn.Linear)] == [6, 5, 3]


@pytest.mark.parametrize("criterion", ["wanda", SparseGPT(pattern="2:4"), OBC(pattern="2:4")])
def test_the_structure_of_two_in_four_takes_what_the_criterion_chose(criterion):
    model, x = deep(), torch.randn(60, 8, dtype=torch.float64)
    result = topiarist.prune(
        model, x, structure="2:4", saliency=criterion, data=[x], sequential=True, allocation="uniform"
    )
    for i in (0, 2):
        left = (result.model[i].weight != 0).view(-1, 4)
        assert left.sum(1).tolist() == [2] * len(left)
