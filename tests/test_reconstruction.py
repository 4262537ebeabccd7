"""Criteria of what consumers lose: ThiNet, LASSO, FLAP; of feature maps and of blocks. Exact on small cases."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

import topiarist
from topiarist.errors import InputError
from topiarist.plan import Units
from topiarist.planning import Planner
from topiarist.saliency import BlockInfluence, Flap, HRank, Lasso, Slices, ThiNet, resolve
from topiarist.saliency.lasso import lasso, violation
from topiarist.saliency.thinet import greedy, scales
from topiarist.stats import Subject, collect
from topiarist.stats.consumers import Absorption, Consumers
from topiarist.stats.contributions import Contributions
from topiarist.stats.features import ConsumedFeatures, Features
from topiarist.stats.influence import Influence
from topiarist.stats.map_ranks import MapRanks
from topiarist.structure import Channel, Head
from topiarist.testing.saliency import SaliencyContract

BUDGET = topiarist.Budget


class OfContributions(SaliencyContract):
    """A Gram matrix has units along both of its dimensions."""

    def stats(self, need, there, generator):
        if need is Consumers:
            return Absorption(True, True)
        z = torch.randn(there.units.num, 20, generator=generator, dtype=torch.float64)
        return z @ z.T / 20

    @pytest.mark.parametrize("widths", [(1,), (4,)])
    def test_scores_follow_their_units(self, criterion, widths):
        order, there = torch.tensor([3, 0, 5, 1, 4, 2]), self.slices(criterion, widths)
        stats = {**there.stats, Contributions: there.stats[Contributions][order][:, order]}
        moved = Slices(there.units, tuple(w[order] for w in there.weights), stats)
        torch.testing.assert_close(criterion(moved), criterion(there)[order], rtol=1e-9, atol=0)


class TestThiNet(OfContributions):
    @pytest.fixture
    def criterion(self):
        return ThiNet()


class TestLasso(OfContributions):
    @pytest.fixture
    def criterion(self):
        return Lasso()


class TestFlap(SaliencyContract):
    @pytest.fixture(params=["wifv", "ifv", "wifn"])
    def criterion(self, request):
        return Flap(request.param)

    def stats(self, need, there, generator):
        return (Features(*torch.rand(4, there.units.num, 3, generator=generator, dtype=torch.float64)),)


class OneNumber(SaliencyContract):
    def stats(self, need, there, generator):
        return torch.rand(there.units.num, generator=generator, dtype=torch.float64)


class TestHRank(OneNumber):
    @pytest.fixture
    def criterion(self):
        return HRank()


class TestBlockInfluence(OneNumber):
    @pytest.fixture
    def criterion(self):
        return BlockInfluence()


# ------------------------------------------------------------------ contributions


def stat(model, data, need, structure=None):
    """The statistic, and the sets of units by name."""
    planner = Planner.of(model, data[0], structure or Channel(), (), None)

    class Needs:
        needs = frozenset({need})

    return planner.collect(Needs(), data, None)[need], {u.name: u for u in planner.units}


def two_convolutions():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1, bias=False)).double()


def mlp(width=8, tail=3):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, tail)).double()


@pytest.mark.parametrize("flattens", [False, True])
def test_contributions_are_those_of_running_one_unit_at_a_time(flattens):
    model = two_convolutions()
    if flattens:
        model = nn.Sequential(*model[:2], nn.Flatten(), nn.Linear(96, 3, bias=False)).double()
    data = [torch.randn(n, 1, 6, 6, dtype=torch.float64) for n in (3, 5)]
    found, units = stat(model, data, Contributions)
    alone = []
    with torch.no_grad():
        hidden = model[1](model[0](torch.cat(data)))
        for u in range(6):
            x = torch.zeros_like(hidden)
            x[:, u] = hidden[:, u]
            out = model[2:](x)
            alone.append(out.movedim(1, -1).reshape(-1))
    x_hat, num = torch.stack(alone), (8 if flattens else 8 * 16)
    torch.testing.assert_close(found.of(units["0.weight:0"]), x_hat @ x_hat.T / num, rtol=1e-10, atol=1e-12)


def test_several_consumers_add_up():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 5), nn.Linear(5, 2), nn.Linear(5, 4)

        def forward(self, x):
            h = torch.relu(self.a(x))
            return self.b(h), self.c(2 * h)

    torch.manual_seed(0)
    model, x = Branches().double(), torch.randn(9, 3, dtype=torch.float64)
    found, units = stat(model, [x], Contributions)
    h = torch.relu(model.a(x)).detach()
    w = torch.cat([model.b.weight, 2 * model.c.weight]).detach()
    torch.testing.assert_close(found.of(units["a.weight:0"]), (w.T @ w) * (h.T @ h) / 9, rtol=1e-11, atol=1e-13)


# ------------------------------------------------------------------ ThiNet


def gram(seed, num=8, samples=30):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(samples, num)) @ rng.normal(size=(num, num))
    return torch.tensor(x.T @ x / samples)


def cost(g, subset):
    return float(g[list(subset)][:, list(subset)].sum())


def test_greedy_costs_are_those_of_the_sets():
    order, costs = greedy(gram(0))
    for k in range(1, 9):
        assert costs[k - 1] == pytest.approx(cost(gram(0), order[:k]), rel=1e-10)
        rest = [u for u in range(8) if u not in order[: k - 1]]
        assert costs[k - 1] == pytest.approx(min(cost(gram(0), [*order[: k - 1], u]) for u in rest), rel=1e-10)


def test_greedy_is_near_the_best_of_all_subsets():
    """Contributions of a random layer after a rectifier; the best four of eight by brute force."""
    ratios = []
    for seed in range(20):
        model = mlp()
        torch.manual_seed(seed)
        x = torch.randn(100, 4, dtype=torch.float64)
        with torch.no_grad():
            model[0].weight.normal_()
            model[2].weight.normal_()
        found, units = stat(model, [x], Contributions)
        g = found.of(units["0.weight:0"])
        best = min(cost(g, subset) for subset in itertools.combinations(range(8), 4))
        ratios.append(greedy(g)[1][3] / max(best, 1e-12))
    assert min(ratios) >= 1 - 1e-9
    assert np.median(ratios) < 1.1


def test_copies_that_cancel_go_first_at_no_cost():
    model, x = mlp(), torch.randn(40, 4, dtype=torch.float64)
    u = int(model[:2](x).mean(0).argmax())  # the most active one: a score of activations alone keeps it
    v = (u + 3) % 8
    with torch.no_grad():
        model[0].weight[v], model[0].bias[v] = model[0].weight[u], model[0].bias[u]
        model[2].weight[:, u] *= 0.01
        model[2].weight[:, v] = -model[2].weight[:, u]
        model[0].bias += 0.5  # none is dead
    order, costs = greedy(stat_of(model, x))
    assert set(order[:2]) == {u, v}
    assert costs[0] > 1e-7
    assert costs[1] == pytest.approx(0, abs=1e-12)
    options = {"structure": "channel", "data": [x], "budget": BUDGET(sparsity=2 / 8)}
    result = topiarist.prune(model, x, saliency="thinet", **options)
    torch.testing.assert_close(result.model(x), model(x), rtol=1e-10, atol=1e-10)
    by_itself = topiarist.prune(model, x, saliency="activation", **options)
    assert not torch.allclose(by_itself.model(x), model(x), atol=1e-3)


def test_scales_are_numpy_s_least_squares_and_never_hurt():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6))
    gone = torch.tensor([True, False, False, True, False, False])
    found = scales(torch.tensor(x.T @ x), gone)
    expected = np.linalg.lstsq(x[:, ~gone.numpy()], x.sum(1), rcond=None)[0]
    np.testing.assert_allclose(found[~gone], expected, rtol=1e-9)
    assert found[gone].tolist() == [0, 0]


def test_scaled_consumers_lose_less():
    model, x = mlp(), torch.randn(200, 4, dtype=torch.float64)
    options = {"structure": "channel", "data": [x], "budget": BUDGET(sparsity=0.5)}
    mended = topiarist.prune(model, x, saliency="thinet", **options)
    scores = Planner.of(model, x, Channel(), (), None).candidates(ThiNet(), [x], None, {}).scores
    plain = topiarist.prune(model, x, saliency=lambda slices: scores[slices.units.name], **options)
    assert mended.plan == plain.plan
    losses = [float((r.model(x) - model(x)).detach().square().sum(1).mean()) for r in (mended, plain)]
    assert losses[1] == pytest.approx(greedy(stat_of(model, x))[1][3], rel=1e-9)
    assert losses[0] < losses[1]


def stat_of(model, x):
    found, units = stat(model, [x], Contributions)
    return found.of(units["0.weight:0"])


# ------------------------------------------------------------------ LASSO


@pytest.mark.parametrize("share", [0.9, 0.3, 0.05])
def test_lasso_meets_the_conditions_of_karush_kuhn_and_tucker(share):
    g = gram(1)
    target = g.sum(1)
    penalty = share * float(target.abs().max())
    beta = lasso(g, target, penalty, torch.zeros(8, dtype=torch.float64))
    residual = target - g @ beta
    for b, r in zip(beta.tolist(), residual.tolist(), strict=True):
        assert abs(r) <= penalty * (1 + 1e-9) if b == 0 else r == pytest.approx(np.sign(b) * penalty, rel=1e-8)
    assert violation(residual, beta + 0.01, penalty) > 1e-3

    def objective(b):
        return 0.5 * b @ g @ b - target @ b + penalty * b.abs().sum()

    rng = torch.Generator().manual_seed(0)
    for _ in range(200):
        other = beta + 0.1 * torch.randn(8, generator=rng, dtype=torch.float64)
        assert objective(other) > objective(beta)


def test_orthogonal_contributions_are_soft_thresholded():
    power = torch.tensor([4.0, 1.0, 0.25], dtype=torch.float64)
    beta = lasso(torch.diag(power), power, 0.5, torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(beta, (1 - 0.5 / power).clamp(min=0))


def planted(copies=0):
    """Twenty units of which the consumer listens to five."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(20, 20), nn.Identity(), nn.Linear(20, 6)).double(), torch.randn(500, 20).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.linalg.qr(torch.randn(20, 20).double())[0])
        model[2].weight[:, 5:] *= 1e-6
        for i in range(copies):
            model[0].weight[5 + i], model[0].bias[5 + i] = model[0].weight[i], model[0].bias[i]
    return model, x


def test_the_planted_set_is_found():
    model, x = planted()
    for word in ("lasso", "thinet"):
        plan = topiarist.plan(model, x, structure="channel", saliency=word, data=[x], budget=BUDGET(sparsity=0.75))
        assert plan.removed["0.weight:0"].nonzero().flatten().tolist() == list(range(5, 20)), word


def test_scores_say_at_which_penalty_each_unit_first_takes_part():
    """Between two scores, those above are the units of some support on the way down to there; one may leave again."""
    model, x = mlp(12), torch.randn(300, 4, dtype=torch.float64)
    g = stat_of(model, x)
    scores = Lasso(num_levels=300)(Slices(Units("u", 12, ()), (), {Contributions: g}))
    scale = g.diagonal().sqrt()
    unit, target = g / torch.outer(scale, scale), g.sum(1) / scale
    ordered = scores.sort(descending=True).values
    seen, weights, start = torch.zeros(12, dtype=torch.bool), torch.zeros(12, dtype=torch.float64), float(target.max())
    for k in range(1, 12):
        level = float((ordered[k - 1] * ordered[k]).sqrt())
        for penalty in torch.logspace(math.log10(start), math.log10(level), 60, dtype=torch.float64).tolist():
            weights = lasso(unit, target, penalty, weights)
            seen |= weights != 0
        assert torch.equal(seen, scores > level)
        start = level


def test_a_dead_unit_goes_first():
    model, x = mlp(), torch.randn(50, 4, dtype=torch.float64)
    with torch.no_grad():
        model[0].weight[3], model[0].bias[3] = 0.0, -1.0
    for word in ("lasso", "thinet"):
        scores = Planner.of(model, x, Channel(), (), None).candidates(resolve(word), [x], None, {}).scores
        assert int(scores["0.weight:0"].argmin()) == 3


# ------------------------------------------------------------------ FLAP


def test_fluctuation_is_that_of_a_loop():
    model = two_convolutions()
    model.append(nn.ReLU()).append(nn.Flatten()).append(nn.Linear(64, 2).double())
    data = [torch.randn(n, 1, 6, 6, dtype=torch.float64) for n in (3, 5)]
    planner = Planner.of(model, data[0], Channel(), (), None)
    with torch.no_grad():
        hidden = model[1](model[0](torch.cat(data))).movedim(1, 0).reshape(6, -1).numpy()
        flat = model[:5](torch.cat(data)).numpy()
    first, last = model[2].weight.detach().numpy(), model[5].weight.detach().numpy()
    expected = {
        "wifv": (hidden.var(1) * (first**2).sum((0, 2, 3)), flat.var(0) * (last**2).sum(0)),
        "ifv": (hidden.var(1), flat.var(0)),
        "wifn": (np.abs(first).mean((0, 2, 3)) * np.linalg.norm(hidden, axis=1),
                 np.abs(last).mean(0) * np.linalg.norm(flat, axis=0)),
    }  # fmt: skip
    for metric, (of_channel, of_feature) in expected.items():
        found = planner.candidates(Flap(metric), data, None, {}).scores
        z = [(m - m.mean()) / m.std() for m in (of_channel, of_feature)]
        np.testing.assert_allclose(found["0.weight:0"], z[0], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found["2.weight:0"], z[1].reshape(4, 16).mean(1), rtol=1e-9, atol=1e-12)
        raw = planner.candidates(Flap(metric, standardize=False), data, None, {}).scores
        np.testing.assert_allclose(raw["0.weight:0"], of_channel, rtol=1e-9)


def test_a_constant_unit_fluctuates_least():
    model, x = mlp(), torch.randn(50, 4, dtype=torch.float64)
    with torch.no_grad():
        model[0].weight[3], model[0].bias[3] = 0.0, 7.0
    for metric in ("wifv", "ifv"):
        scores = Planner.of(model, x, Channel(), (), None).candidates(Flap(metric), [x], None, {}).scores
        assert int(scores["0.weight:0"].argmin()) == 3


def test_heads_are_the_mean_of_their_features():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_heads = 2
            self.qkv, self.out = nn.ModuleList(nn.Linear(8, 8) for _ in range(3)), nn.Linear(8, 8)

        def forward(self, x):
            q, k, v = (m(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for m in self.qkv)
            return self.out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    model, x, seen = Attention().double(), torch.randn(4, 5, 8, dtype=torch.float64), []
    handle = model.out.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().flatten(0, 1)))
    model(x)
    handle.remove()
    (found,) = Planner.of(model, x, Head(), (), None).candidates(Flap(), [x], None, {}).scores.values()
    metric = (seen[0].var(0, correction=0) * model.out.weight.square().sum(0)).detach()
    z = (metric - metric.mean()) / metric.std(correction=0)
    torch.testing.assert_close(found, z.view(2, 4).mean(1), rtol=1e-10, atol=1e-12)


def test_an_unknown_metric_is_refused():
    with pytest.raises(InputError, match="nearest: wifv"):
        Flap("wif")


# ------------------------------------------------------------------ HRank


def test_ranks_of_maps_are_those_of_numpy():
    model = two_convolutions()
    model.append(nn.Flatten()).append(nn.Linear(64, 2).double())
    data = [torch.randn(n, 1, 6, 6, dtype=torch.float64) for n in (3, 5)]
    found, units = stat(model, data, MapRanks)
    with torch.no_grad():
        read = model[1](model[0](torch.cat(data))).numpy()
        made = model[2](torch.from_numpy(read)).numpy()
    for name, maps in (("0.weight:0", read), ("2.weight:0", made)):
        loop = [np.mean([np.linalg.matrix_rank(sample[c]) for sample in maps]) for c in range(maps.shape[1])]
        np.testing.assert_allclose(found.of(units[name]), loop)


def test_a_flat_map_has_the_lowest_rank():
    model, x = two_convolutions(), torch.randn(3, 1, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        model[0].weight[4], model[0].bias[4] = 0.0, 1.0
    scores = Planner.of(model, x, Channel(), (), None).candidates(HRank(), [x], None, {}).scores["0.weight:0"]
    assert scores[4] == 1.0
    assert int(scores.argmin()) == 4


def test_units_that_are_no_maps_are_refused():
    model, x = mlp(), torch.randn(9, 4, dtype=torch.float64)
    with pytest.raises(InputError, match="no feature maps"):
        topiarist.plan(model, x, structure="channel", saliency="hrank", data=[x], budget=BUDGET(sparsity=0.5))


# ------------------------------------------------------------------ block influence


class Turn(nn.Module):
    """A residual block; ``scale`` 0 leaves the stream as it is."""

    def __init__(self, scale):
        super().__init__()
        self.fc, self.scale = nn.Linear(6, 6), scale

    def forward(self, x):
        return x + self.scale * self.fc(x)


@dataclass(frozen=True, eq=False)
class Modules:
    """A set of units that are modules."""

    name: str
    modules: tuple[str, ...]
    members: tuple = ()


def influence(model, data):
    units = Modules("Turn", tuple(n for n, m in model.named_modules() if isinstance(m, Turn)))
    subject = Subject(model, (units,))
    found = Influence(subject)
    collect([found], subject, data)
    return found.of(units)


def test_influence_is_the_angle_of_tokens():
    torch.manual_seed(0)
    model = nn.Sequential(Turn(0.0), Turn(1.0), Turn(0.1)).double()
    data = [torch.randn(n, 3, 6, dtype=torch.float64) for n in (2, 5)]
    found = influence(model, data)
    x, expected = torch.cat(data).view(-1, 6), []
    for block in model:
        y = block(x).detach()
        tokens = zip(x.numpy(), y.numpy(), strict=True)
        expected.append(1 - np.mean([a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in tokens]))
        x = y
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert abs(float(found[0])) < 1e-12
    assert not any(m._forward_hooks for m in model.modules())
    swapped = influence(model, [d.flip(1) for d in data])
    torch.testing.assert_close(swapped, found, rtol=1e-12, atol=1e-14)


def test_a_turned_stream_has_the_largest_influence():
    class Rotation(Turn):
        def forward(self, x):
            return x.roll(1, -1) * torch.tensor([-1.0, 1, 1, 1, 1, 1])

    torch.manual_seed(0)
    model = nn.Sequential(Turn(0.1), Rotation(0.0), Turn(0.3))
    found = influence(model, [torch.randn(50, 3, 6)])
    assert int(found.argmax()) == 1
    assert float(found[1]) == pytest.approx(1.0, abs=0.1)


def test_modules_that_change_shape_are_refused_and_leave_no_hook():
    class Narrow(Turn):
        def forward(self, x):
            return x[..., :3]

    model = nn.Sequential(Narrow(1.0))
    with pytest.raises(InputError, match="cannot be left out"):
        influence(model, [torch.randn(2, 6)])
    assert not any(m._forward_hooks for m in model.modules())


def test_units_that_are_no_modules_are_refused():
    model, x = mlp(), torch.randn(9, 4, dtype=torch.float64)
    with pytest.raises(InputError, match="structure='layer'"):
        topiarist.plan(model, x, structure="channel", saliency="block-influence", data=[x], budget=BUDGET(sparsity=0.5))


@pytest.mark.parametrize("word", ["flap", "hrank", "lasso", "thinet", "block-influence"])
def test_words(word):
    assert resolve(word).needs
    assert ConsumedFeatures in Flap.needs
