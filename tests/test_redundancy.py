"""Criteria of redundancy: exact cases, loops, and merges that leave the function as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import topiarist
from topiarist.errors import InputError
from topiarist.plan import Member, Units
from topiarist.planning import Planner
from topiarist.saliency import Correlated, Cosine, GeometricMedian, Similar, Slices, resolve
from topiarist.saliency.pairs import in_order, pair_off
from topiarist.stats.consumers import Absorption, Consumers
from topiarist.stats.unit_inputs import Covariance, UnitCovariance
from topiarist.structure import Channel
from topiarist.testing.saliency import SaliencyContract

BUDGET = topiarist.Budget


class TestGeometricMedian(SaliencyContract):
    @pytest.fixture(params=["l2", "cosine"])
    def criterion(self, request):
        return GeometricMedian(request.param, smallest=0.2)


class TestCosine(SaliencyContract):
    @pytest.fixture
    def criterion(self):
        return Cosine()


class OfConsumers(SaliencyContract):
    def stats(self, need, there, generator):
        if need is Consumers:
            return Absorption(True, True)
        z = torch.randn(there.units.num, 20, generator=generator, dtype=torch.float64)
        return Covariance(z.mean(1), torch.cov(z, correction=0), 20)


class TestSimilar(OfConsumers):
    @pytest.fixture(params=[True, False])
    def criterion(self, request):
        return Similar(request.param)


class TestCorrelated(OfConsumers):
    @pytest.fixture(params=["correlation", "error"])
    def criterion(self, request):
        return Correlated(request.param)

    @pytest.mark.parametrize("widths", [(1,), (4,)])
    def test_scores_follow_their_units(self, criterion, widths):
        """A covariance has units along both of its dimensions."""
        order = torch.tensor([3, 0, 5, 1, 4, 2])
        there = self.slices(criterion, widths)
        seen = there.stats[UnitCovariance()]
        turned = Covariance(seen.mean[order], seen.covariance[order][:, order], seen.num)
        stats = {**there.stats, UnitCovariance(): turned}
        moved = Slices(there.units, tuple(w[order] for w in there.weights), stats)
        torch.testing.assert_close(criterion(moved), criterion(there)[order], rtol=1e-12, atol=0)


def filters(rows):
    rows = torch.as_tensor(rows, dtype=torch.float64)
    return Slices(Units("conv", len(rows), (Member("w", 0, torch.arange(len(rows)), "out"),)), (rows,))


# ------------------------------------------------------------------ geometric median, cosine


def test_the_golden_filters():
    """METHODS' set {0, 1, 2, 10}: 1 or 2 goes, where the norm would take 0."""
    assert GeometricMedian()(filters([[0.0], [1.0], [2.0], [10.0]])).tolist() == [13, 11, 11, 27]


def test_the_outlier_stays():
    rows = [[1.0, 1.0]] * 4 + [[-2.0, 0.5]] * 4 + [[30.0, -20.0]]
    assert int(GeometricMedian()(filters(rows)).argmax()) == 8


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_distances_are_those_of_a_loop(distance):
    torch.manual_seed(0)
    rows = torch.randn(7, 5, dtype=torch.float64)
    f = rows.numpy()

    def d(a, b):
        return np.linalg.norm(a - b) if distance == "l2" else 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)

    loop = [sum(d(a, b) for j, b in enumerate(f) if j != i) for i, a in enumerate(f)]
    np.testing.assert_allclose(GeometricMedian(distance)(filters(rows)), loop, rtol=1e-12)


def test_cosine_and_l2_differ():
    """A long copy of a filter is far in l2 and near in angle (the reference code never reaches its cosine)."""
    there = filters([[1.0, 0.0], [10.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    assert GeometricMedian("l2")(there).argsort().tolist() != GeometricMedian("cosine")(there).argsort().tolist()
    with pytest.raises(InputError, match="nearest: cosine"):
        GeometricMedian("cosin")


def test_the_mix_takes_small_norms_first_and_measures_among_the_rest():
    rows = [[0.1], [3.0], [4.0], [5.0], [20.0]]
    found = GeometricMedian(smallest=0.2)(filters(rows))
    assert found[0] < 0
    assert torch.equal(found[1:], GeometricMedian()(filters(rows[1:])))


def test_near_twins_do_not_cancel():
    rows = torch.full((3, 4), 1e4, dtype=torch.float32)
    rows[1, 0] += 0.015625
    assert GeometricMedian()(filters(rows)).tolist() == pytest.approx([0.015625, 0.03125, 0.015625], rel=1e-12)


def test_of_twins_one_goes():
    scores = Cosine()(filters([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0], [-1.0, 0.0]]))
    assert scores.argsort().tolist()[0] == 0  # the smaller one
    assert scores[0] == 0
    assert (scores[1:] >= 1 - 1e-15).all()


def test_only_what_makes_the_unit_counts():
    rows = torch.tensor([[1.0, 0.0], [1.0, 0.0], [5.0, 1.0]])
    members = tuple(Member(n, d, torch.arange(3), s) for n, d, s in (("w", 0, "out"), ("b", 0, ""), ("v", 1, "in")))
    there = Slices(Units("w:0", 3, members), (rows, torch.randn(3, 1), torch.randn(3, 4)))
    assert torch.equal(GeometricMedian()(there), GeometricMedian()(filters(rows)))


@pytest.mark.parametrize("criterion", ["fpgm", "cosine", "similar"])
def test_single_weights_are_refused(criterion):
    with pytest.raises(InputError, match="channel"):
        topiarist.plan(nn.Linear(2, 2), torch.zeros(1, 2), saliency=criterion, budget=BUDGET(sparsity=0.5))


# ------------------------------------------------------------------ pairs


def brute(distance, matters, ties):
    """The same without any bookkeeping."""
    left, made = list(range(len(distance))), []
    while left:
        pairs = [(matters[u] * distance[u][v], ties[u], u, v) for u in left for v in left if u != v]
        cost, _, u, v = min(pairs) if pairs else (np.inf, 0, left[0], None)
        made.append((u, v, cost))
        left.remove(u)
    return made


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 9))
def test_pairs_are_those_of_brute_force(seed, num):
    rng = np.random.default_rng(seed)
    distance, matters = rng.integers(0, 5, (num, num)).astype(float), rng.integers(1, 4, num).astype(float)
    ties = rng.permutation(num).astype(float)
    merges = pair_off(torch.tensor(distance), torch.tensor(matters), torch.tensor(ties))
    assert [(m.gone, m.cost) for m in merges] == [(u, cost) for u, _, cost in brute(distance, matters, ties)]
    for merge in merges[:-1]:
        assert distance[merge.gone, merge.kept] * matters[merge.gone] == merge.cost
    scores = in_order([m.gone for m in merges], [m.cost for m in merges])
    assert scores.argsort(stable=True).tolist() == [m.gone for m in merges]


# ------------------------------------------------------------------ merging


def mlp(nonlinearity=nn.ReLU):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nonlinearity(), nn.Linear(8, 3)).double()


def duplicate(model, pairs, scale=1.0):
    with torch.no_grad():
        for kept, copy in pairs:
            model[0].weight[copy] = scale * model[0].weight[kept]
            model[0].bias[copy] = scale * model[0].bias[kept]


def pruned(model, x, num, saliency, **options):
    size = model[0].out_features if isinstance(model[0], nn.Linear) else model[0].out_channels
    return topiarist.prune(model, x, structure="channel", saliency=saliency, budget=BUDGET(sparsity=num / size),
                           **options).model  # fmt: skip


@pytest.mark.parametrize("normalize", [True, False])
def test_duplicates_merge_without_a_trace(normalize):
    model, x = mlp(), torch.randn(20, 4, dtype=torch.float64)
    duplicate(model, [(0, 5), (0, 6), (2, 1)])
    small = pruned(model, x, 3, Similar(normalize))
    assert small[0].out_features == 5
    torch.testing.assert_close(small(x), model(x), rtol=1e-12, atol=1e-12)
    deleted = pruned(model, x, 3, lambda slices: Similar(normalize)(slices))  # the same units, nothing taken over
    assert not torch.allclose(deleted(x), model(x), atol=1e-2)


def test_scaled_duplicates_merge_only_where_directions_are_compared():
    model, x = mlp(), torch.randn(20, 4, dtype=torch.float64)
    duplicate(model, [(0, 5), (2, 1)], scale=3.0)
    torch.testing.assert_close(pruned(model, x, 2, Similar())(x), model(x), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(pruned(model, x, 2, Similar(normalize=False))(x), model(x), atol=1e-2)


def test_convolutions_and_flattened_features_merge():
    torch.manual_seed(0)
    for tail in (
        nn.Sequential(nn.Conv2d(8, 2, 3, padding=1), nn.Flatten()),
        nn.Sequential(nn.Flatten(), nn.Linear(128, 2)),
    ):
        model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), *tail).double()
        duplicate(model, [(3, 4), (6, 7)], scale=0.5)
        x = torch.randn(5, 1, 4, 4, dtype=torch.float64)
        torch.testing.assert_close(pruned(model, x, 2, "similar")(x), model(x), rtol=1e-11, atol=1e-12)


def test_saliency_is_that_of_the_paper():
    """s_ij = ⟨a_j²⟩ ‖ε_ij‖², biases in ε; the lowest over i, one removal at a time, a_i growing."""
    model = mlp()
    w = torch.cat([model[0].weight, model[0].bias[:, None]], 1).detach().numpy()
    a, left, order, costs = model[2].weight.detach().numpy().T.copy(), list(range(8)), [], []
    while len(left) > 1:
        s, i, j = min(
            ((a[j] ** 2).mean() * ((w[i] - w[j]) ** 2).sum(), i, j) for i in left for j in left if i != j
        )  # fmt: skip
        order.append(j)
        costs.append(s)
        a[i] += a[j]
        left.remove(j)
    planner = Planner.of(model, torch.zeros(1, 4, dtype=torch.float64), Channel(), (), None)
    scores = planner.candidates(Similar(normalize=False), None, None, {}).scores["0.weight:0"]
    assert scores.argsort().tolist()[:-1] == order
    np.testing.assert_allclose(scores[order], np.maximum.accumulate(costs), rtol=1e-12)


def test_weights_that_serve_elsewhere_are_left_alone():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.fc = nn.Embedding(5, 6), nn.Linear(6, 6)
            self.head = nn.Linear(6, 5, bias=False)
            self.head.weight = self.table.weight

        def forward(self, i):
            return self.head(torch.relu(self.fc(self.table(i))))

    torch.manual_seed(0)
    model, i = Tied(), torch.arange(5)
    result = topiarist.prune(model, i, structure="channel", saliency="similar", budget=BUDGET(sparsity=0.3))
    kept = ~next(iter(result.plan.removed.values()))
    assert torch.equal(result.model.table.weight, model.table.weight[:, kept])


# ------------------------------------------------------------------ correlation


def test_affine_partners_merge_without_a_trace():
    """Units 1 = 2 · unit 0 + 3, 4 = −unit 3: linear hidden units, so that the constant is real."""
    model, x = mlp(nn.Identity), torch.randn(50, 4, dtype=torch.float64)
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = 2 * model[0].weight[0], 2 * model[0].bias[0] + 3
        model[0].weight[4], model[0].bias[4] = -model[0].weight[3], -model[0].bias[3]
    for criterion in (Correlated(), Correlated("error")):
        small = pruned(model, x, 2, criterion, data=[x])
        torch.testing.assert_close(small(x), model(x), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(pruned(model, x, 2, "activation", data=[x])(x), model(x), atol=1e-2)


def hidden(model, x):
    return model[1](model[0](x)).detach()


def test_regression_is_that_of_polyfit():
    model, x = mlp(), torch.randn(200, 4, dtype=torch.float64)
    planner = Planner.of(model, x, Channel(), (), None)
    stats = planner.collect(Correlated(), [x], None)
    units = planner.units[0]
    there = Slices(units, (torch.zeros(8, 1),) * len(units.members), {n: s.of(units) for n, s in stats.items()})
    merges, stand_in = Correlated().merges(there)
    z = hidden(model, x).numpy()
    for merge in merges[:-1]:
        if z[:, merge.gone].var() > 0 and z[:, merge.kept].var() > 0:
            expected = np.polyfit(z[:, merge.kept], z[:, merge.gone], 1)
            np.testing.assert_allclose(stand_in(merge), expected, rtol=1e-9, atol=1e-12)
            rho = np.corrcoef(z[:, merge.kept], z[:, merge.gone])[0, 1]
            assert merge.cost == pytest.approx(1 - rho**2, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_the_error_of_a_merge_is_an_identity(bias):
    """E‖Δ‖² = ‖a_u‖² var(u) (1 − ρ²), with the moments of the same sample; without biases, of second moments."""
    model, x = mlp(), torch.randn(300, 4, dtype=torch.float64)
    if not bias:
        model[2].bias = None
    score = Planner.of(model, x, Channel(), (), None).candidates(Correlated("error"), [x], None, {}).scores
    predicted = score["0.weight:0"].min()
    small = pruned(model, x, 1, Correlated("error"), data=[x])
    measured = (small(x) - model(x)).detach().square().sum(1).mean()
    assert float(measured) == pytest.approx(float(predicted), rel=1e-9)
    assert predicted > 1e-6


def test_a_constant_unit_leaves_its_constant():
    model, x = mlp(), torch.randn(50, 4, dtype=torch.float64)
    with torch.no_grad():
        model[0].weight[3], model[0].bias[3] = 0.0, 2.0
    small = pruned(model, x, 1, "correlation", data=[x])
    torch.testing.assert_close(small(x), model(x), rtol=1e-12, atol=1e-12)
    conv = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3), nn.Flatten()).double()
    with torch.no_grad():
        conv[0].weight[2], conv[0].bias[2] = 0.0, 1.5
    x = torch.randn(3, 1, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(pruned(conv, x, 1, "correlation", data=[x])(x), conv(x), rtol=1e-11, atol=1e-12)


def test_an_unknown_ranking_is_refused():
    with pytest.raises(InputError, match="nearest: error"):
        Correlated("eror")


def test_merges_go_on_over_several_steps():
    model, x = mlp(), torch.randn(60, 4, dtype=torch.float64)
    duplicate(model, [(0, 5), (0, 6), (2, 1)], scale=2.0)
    for word in ("similar", "correlation"):
        small = pruned(model, x, 3, word, data=[x], steps=3, schedule="linear")
        torch.testing.assert_close(small(x), model(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("word", ["fpgm", "cosine", "similar", "correlation"])
def test_words(word):
    assert callable(resolve(word))


def test_merging_beats_deletion_on_a_trained_net():
    """Both hidden layers, no data, no training: by 2 points at one half, by 10 at three quarters."""
    from sklearn.datasets import load_digits

    images, labels = (torch.tensor(a) for a in load_digits(return_X_y=True))
    images = images.float() / 16
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(60):
        nn.functional.cross_entropy(model(images[:1400]), labels[:1400]).backward()
        optimizer.step()
        optimizer.zero_grad()

    def accuracy(saliency, sparsity):
        result = topiarist.prune(
            model, images[:1], structure="channel", saliency=saliency, allocation="uniform",
            budget=BUDGET(sparsity=sparsity),
        )  # fmt: skip
        return 100 * float((result.model(images[1400:]).argmax(1) == labels[1400:]).double().mean())

    found = {s: (accuracy("similar", s), accuracy("l2", s)) for s in (0.5, 0.75)}
    assert found[0.5][0] >= found[0.5][1] + 2
    assert found[0.75][0] >= found[0.75][1] + 10
