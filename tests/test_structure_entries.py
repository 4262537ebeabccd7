"""Structures that zero entries: n:m, blocks, kernels, vectors, patterns, strides; each against a loop in NumPy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import topiarist
from topiarist import Budget
from topiarist.errors import BudgetError, InputError
from topiarist.graph import trace
from topiarist.plan import Plan
from topiarist.structure import NM, Block, Kernel, Pattern, Strided, Vector, resolve
from topiarist.structure.nm import best_of_groups
from topiarist.structure.pattern import choose, library

ENTRY_WISE = ["2:4", "1:3", "4:8", "block:4x4", "block:3x5", "kernel", "vector", "pattern", "strided:2", "strided:4"]


class Mixed(nn.Module):
    """Linear, transposed linear (in, out), convolutions plain, grouped and transposed."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose2d(8, 6, 2)
        self.flipped = nn.Parameter(torch.randn(6 * 25, 7))
        self.head = nn.Linear(7, 5)

    def forward(self, x):
        x = F.relu(self.grouped(F.relu(self.conv(x))))
        return self.head(F.relu(self.up(x).flatten(1) @ self.flipped))


@pytest.fixture(scope="module")
def mixed():
    torch.manual_seed(0)
    return Mixed(), torch.randn(2, 3, 4, 4)


def entries(plan, model):
    return {name: mask.numpy() for name, mask in plan.masks(model).items()}


def as_rows(array, inner):
    """(…, inputs) of a weight in NumPy."""
    return np.moveaxis(array, inner, -1).reshape(-1, array.shape[inner])


INNER = {"conv.weight": 1, "grouped.weight": 1, "up.weight": 0, "flipped": 0, "head.weight": 1}


# ---------------------------------------------------------------------------------------------------------- n of m


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (2, 3)])
def test_of_every_m_inputs_the_n_largest_stay(mixed, n, m):
    model, x = mixed
    plan = topiarist.plan(model, x, structure=f"{n}:{m}")
    assert plan.structure == f"{n}:{m}"
    found = entries(plan, model)
    assert found.keys() == INNER.keys()
    for name, inner in INNER.items():
        weight = as_rows(model.get_parameter(name).detach().abs().numpy(), inner)
        check_groups(weight, as_rows(found[name], inner), n, m)


def check_groups(weight, gone, n, m):
    """The oracle: group by group, a stable sort."""
    for row, lost in zip(weight, gone, strict=True):
        for start in range(0, len(row), m):
            group = row[start : start + m]
            num = len(group) - math.ceil(n * len(group) / m)
            expected = np.zeros(len(group), bool)
            expected[np.argsort(group, kind="stable")[:num]] = True
            assert (lost[start : start + m] == expected).all()


def test_the_check_of_groups_catches_groups_along_the_wrong_dimension(mixed):
    weight = mixed[0].head.weight.detach().abs()
    wrong = ~best_of_groups(weight.T, 2, 4).T
    with pytest.raises(AssertionError):
        check_groups(weight.numpy(), wrong.numpy(), 2, 4)


def test_ties_are_stable():
    net = nn.Sequential(nn.Linear(8, 2, bias=False))
    nn.init.ones_(net[0].weight)
    plan = topiarist.plan(net, torch.zeros(1, 8), structure="2:4")
    assert plan.masks(net)["0.weight"].tolist() == [[True, True, False, False] * 2] * 2


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 11), st.integers(0, 10))
@settings(max_examples=60, deadline=None)
def test_what_is_kept_is_the_most_of_all_masks(n, more, num, seed):
    m = n + more
    row = torch.randint(0, 4, (1, num), generator=torch.Generator().manual_seed(seed)).double()
    kept = best_of_groups(row, n, m)[0]
    for start in range(0, num, m):
        group = row[0, start : start + m]
        stay = math.ceil(n * len(group) / m)
        most = max(sum(c) for c in itertools.combinations(group.tolist(), stay))
        assert int(kept[start : start + m].sum()) == stay
        assert float(group[kept[start : start + m]].sum()) == most


@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_a_schedule_approaches_it(mixed, allocation):
    model, x = mixed
    final = topiarist.plan(model, x, structure="2:4")
    most = final.achieved["sparsity"]
    result = topiarist.prune(
        model, x, structure="2:4", allocation=allocation, budget=Budget(sparsity=most), schedule="linear", steps=3
    )
    assert [row["sparsity"] for row in result.curve] == pytest.approx([most / 3, 2 * most / 3, most], abs=2e-3)
    assert result.plan.removed.keys() == final.removed.keys()
    for name, gone in final.removed.items():
        assert torch.equal(result.plan.removed[name], gone)


def test_part_of_the_way_takes_the_lowest_of_those_that_may_go(mixed):
    model, x = mixed
    part, final = (topiarist.plan(model, x, structure="2:4", budget=b) for b in (Budget(sparsity=0.2), None))
    scores = torch.cat([model.get_parameter(n).detach().abs().flatten()[final.removed[n]] for n in final.removed])
    found = torch.cat([part.removed[n][final.removed[n]] for n in final.removed])
    assert part.num_removed == int(found.sum()) == int(0.2 * part.num_units + 0.5)
    assert scores[found].max() <= scores[~found].min()


def test_more_than_it_may_is_refused(mixed):
    with pytest.raises(BudgetError, match=r"asked for sparsity=0.7, nearest is sparsity=0.4.* keeps"):
        topiarist.plan(*mixed, structure="2:4", budget=Budget(sparsity=0.7))


@pytest.mark.parametrize(("n", "m"), [(0, 4), (4, 4), (5, 4), (0, 0)])
def test_senseless_amounts_are_refused(n, m):
    with pytest.raises(InputError, match="0 < n < m"):
        resolve(f"{n}:{m}")


# --------------------------------------------------------------------------------------------- all that zero entries


@pytest.mark.parametrize("structure", ENTRY_WISE)
def test_plan_mask_save_and_price_agree(mixed, structure, tmp_path):
    model, x = mixed
    amount = None if getattr(resolve(structure), "names_amount", False) else Budget(sparsity=0.4)
    result = topiarist.prune(model, x, structure=structure, budget=amount)
    plan, masked = result.plan, result.model
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan.from_json(plan.to_json()).zeroed.keys() == plan.zeroed.keys()
    zero = {n: (p == 0).numpy() for n, p in masked.named_parameters()}
    for name, gone in entries(plan, masked).items():
        assert (zero[name] == gone).all()
    num = sum(p.numel() for p in model.parameters())
    left = num - sum(int(gone.sum()) for gone in entries(plan, masked).values())
    assert plan.achieved["params"] == pytest.approx(left / num, abs=1e-12)
    assert plan.achieved["macs"] == pytest.approx(
        topiarist.measure(masked, x).nonzero_macs / topiarist.measure(model, x).macs, abs=1e-12
    )
    loaded = topiarist.load(topiarist.save(masked, tmp_path), build=Mixed)
    torch.testing.assert_close(loaded(x), masked(x), rtol=0, atol=0)
    assert topiarist.unmask(loaded) is loaded


@pytest.mark.parametrize("structure", ["block:4x4", "kernel", "vector", "pattern", "2:4", "strided:2"])
def test_what_is_gone_stays_gone_as_weights_move(mixed, structure):
    model, x = mixed

    seen = []

    def recover(work, context):
        seen.append(context.plan)
        with torch.no_grad():
            for parameter in work.parameters():
                parameter.add_(torch.randn_like(parameter) * (parameter != 0))
        return []

    whole = None if getattr(resolve(structure), "names_amount", False) else Budget(sparsity=0.5)
    amount = topiarist.plan(model, x, structure=structure, budget=whole).achieved["sparsity"] * 0.95

    topiarist.prune(model, x, structure=structure, budget=Budget(sparsity=amount), steps=3, schedule="linear",
                    recover=recover)  # fmt: skip
    for before, after in itertools.pairwise(seen):
        assert all(bool((after.removed[n] | ~before.removed[n]).all()) for n in before.removed)


@pytest.mark.parametrize("structure", ["weight", *ENTRY_WISE])
def test_what_leaves_shapes_alone_neither_shrinks_nor_rounds(mixed, structure):
    model, x = mixed
    names_amount = getattr(resolve(structure), "names_amount", False)
    plan = topiarist.plan(model, x, structure=structure, budget=None if names_amount else Budget(sparsity=0.3))
    with pytest.raises(InputError, match="leave shapes as they are"):
        topiarist.shrink(model, plan)
    with pytest.raises(InputError, match="round_to is for structure 'channel'"):
        topiarist.plan(model, x, structure=structure, round_to=8, budget=Budget(sparsity=0.3))
    with pytest.raises(InputError, match="leaves all as they are"):
        topiarist.plan(model, x, structure=structure, uniform="config", budget=Budget(sparsity=0.3))


@pytest.mark.parametrize("word", ["blok", "block:0x4", "strided:1", "3 of 4", "2:4:8"])
def test_words_that_mean_nothing_are_refused(word):
    with pytest.raises(InputError):
        resolve(word)


def test_a_network_without_kernels_says_so():
    net = nn.Sequential(nn.Linear(4, 4))
    for structure in ("kernel", "vector", "pattern", "strided"):
        with pytest.raises(InputError, match=r"no .*convolution"):
            topiarist.plan(net, torch.zeros(1, 4), structure=structure, budget=Budget(sparsity=0.5))


# ------------------------------------------------------------------------------------------ blocks, kernels, vectors


@pytest.mark.parametrize(("rows", "cols"), [(4, 4), (3, 5), (1, 8)])
def test_blocks_are_tiles_of_outputs_and_inputs(mixed, rows, cols):
    model, x = mixed
    for name, outer, inner in (("conv.weight", 0, 1), ("up.weight", 1, 0), ("flipped", 1, 0), ("head.weight", 0, 1)):
        units = next(u for u in Block(rows, cols).units(trace(model, x)) if u.name == name)
        weight = model.get_parameter(name).detach().numpy()
        unit = units.members[0].unit.view(weight.shape).numpy()
        tiles = {}
        for place in np.ndindex(weight.shape):
            rest = tuple(p for d, p in enumerate(place) if d not in (outer, inner))
            tiles.setdefault((rest, place[outer] // rows, place[inner] // cols), set()).add(unit[place])
        assert sorted(next(iter(u)) for u in tiles.values()) == list(range(units.num)), "one unit a tile, none shared"
        assert all(len(found) == 1 for found in tiles.values())


def test_the_score_of_a_block_at_the_edge_is_that_of_its_own_entries():
    net = nn.Sequential(nn.Linear(5, 5, bias=False))
    plan = topiarist.plan(net, torch.zeros(1, 5), structure="block:2x3", budget=Budget(sparsity=0.5))
    weight = net[0].weight.detach().double().numpy()
    norms = {(r, c): np.sqrt((weight[r : r + 2, c : c + 3] ** 2).sum()) for r in (0, 2, 4) for c in (0, 3)}
    lowest = sorted(norms, key=norms.get)[:3]
    expected = np.zeros((5, 5), bool)
    for r, c in lowest:
        expected[r : r + 2, c : c + 3] = True
    assert (plan.masks(net)["0.weight"].numpy() == expected).all()


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_kernels_and_their_rows_in_one_to_three_dimensions(rank):
    conv = [nn.Conv1d, nn.Conv2d, nn.Conv3d][rank - 1](3, 4, 3)
    net, x = nn.Sequential(conv), torch.zeros(1, 3, *[5] * rank)
    norm = conv.weight.detach().double().pow(2).flatten(2).sum(2)
    plan = topiarist.plan(net, x, structure=Kernel(minimum=0), budget=Budget(sparsity=0.5))
    gone = plan.masks(net)["0.weight"].flatten(2)
    assert bool((gone.all(2) == gone.any(2)).all())
    assert norm[gone.all(2)].max() < norm[~gone.all(2)].min()
    rows = topiarist.plan(net, x, structure=Vector(), budget=Budget(sparsity=0.5)).masks(net)["0.weight"]
    assert bool((rows.all(-1) == rows.any(-1)).all())
    assert int(rows.all(-1).sum()) == 3 * 4 * 3 ** (rank - 1) // 2


def test_each_output_map_keeps_its_best_kernel(mixed):
    model, x = mixed
    for allocation in ("global", "uniform"):
        plan = topiarist.plan(model, x, structure="kernel", allocation=allocation, budget=Budget(sparsity=0.7))
        for name, outer in (("conv.weight", 0), ("grouped.weight", 0), ("up.weight", 1)):
            left = ~plan.masks(model)[name].flatten(2).all(2).movedim(outer, 0)
            assert bool(left.any(1).all()), name
            norm = model.get_parameter(name).detach().pow(2).flatten(2).sum(2).movedim(outer, 0)
            assert bool(left.gather(1, norm.argmax(1, keepdim=True)).all())


def test_a_kernel_less_costs_its_places_times_the_pixels():
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3)), torch.zeros(1, 3, 6, 6)
    plan = topiarist.plan(net, x, structure=Kernel(0), budget=Budget(sparsity=0.5))
    before, after = topiarist.measure(net, x).macs, topiarist.measure(topiarist.mask(net, plan), x).nonzero_macs
    assert before - after == 6 * 4 * 4 * 9


@pytest.mark.parametrize("seed", range(5))
def test_finer_units_keep_no_less_energy(seed):
    """METHODS: element ≥ vector ≥ kernel ≥ filter, each finer optimum being over more masks (Σ w², as many entries)."""
    torch.manual_seed(seed)
    net, x = nn.Sequential(nn.Conv2d(4, 6, 3, bias=False)), torch.zeros(1, 4, 5, 5)
    weight = net[0].weight.detach().double()
    filters = weight.pow(2).flatten(1).sum(1)
    kept = [float(filters.sort().values[3:].sum())]
    for structure in (Kernel(0), Vector(), "weight"):
        plan = topiarist.plan(net, x, structure=structure, budget=Budget(sparsity=0.5))
        gone = plan.masks(net)["0.weight"]
        assert int(gone.sum()) == weight.numel() // 2
        kept.append(float(weight[~gone].pow(2).sum()))
    assert kept == sorted(kept)


# ----------------------------------------------------------------------------------------------- inside the kernels


def test_every_kernel_takes_the_best_of_a_small_library(mixed):
    model, x = mixed
    plan = topiarist.plan(model, x, structure=Pattern(4, 3))
    names = ("conv.weight", "grouped.weight")
    kernels = torch.cat([model.get_parameter(n).detach().double().reshape(-1, 9) for n in names]).numpy()
    stays = torch.cat([~plan.masks(model)[n].reshape(-1, 9) for n in names]).numpy()
    assert (stays.sum(1) == 4).all()
    assert plan.masks(model).keys() == {"conv.weight", "grouped.weight"}, "2 × 2 kernels are a pattern themselves"
    natural = {}
    for kernel in kernels**2:
        own = tuple(sorted(np.argsort(kernel, kind="stable")[-4:]))
        natural[own] = natural.get(own, 0) + kernel[list(own)].sum()
    patterns = sorted(natural, key=natural.get, reverse=True)[:3]
    for kernel, stay in zip(kernels**2, stays, strict=True):
        assert kernel[stay].sum() == pytest.approx(max(kernel[list(p)].sum() for p in patterns), rel=1e-12)
        assert tuple(np.flatnonzero(stay)) in patterns


def test_patterns_prefer_what_is_not_gone():
    kernels = torch.tensor([[9.0, 8.0, 1.0, 1.0]])
    patterns = torch.tensor([[True, True, False, False], [False, False, True, True]])
    assert choose(kernels, patterns, torch.tensor([[True, False, False, False]])).tolist() == [
        [False, False, True, True]
    ]
    assert library(kernels, 2, 1, torch.tensor([[True, False, False, False]]))[0].tolist()[:2] == [False, True]


def test_strided_convolutions_are_shorter_products():
    """The oracle of Anwar et al.: im2col without the rows that are gone gives what the masked convolution gives."""
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv2d(3, 5, 3).double()), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    weight = net[0].weight.detach().clone()
    plan = topiarist.plan(net, x, structure=Strided(2))
    gone = plan.masks(net)["0.weight"].flatten(1)
    assert bool((gone == gone[0]).all()), "the same for all kernels that leave a map"
    for source in range(3):
        energy = [float(weight[:, source].flatten(1)[:, offset::2].pow(2).sum()) for offset in (0, 1)]
        best = int(np.argmax(energy))
        assert (~gone[0].view(3, 9)[source]).nonzero().flatten().tolist() == list(range(best, 9, 2))
    reduced = F.unfold(x, 3)[:, ~gone[0]]
    product = weight.flatten(1)[:, ~gone[0]] @ reduced + net[0].bias[:, None]
    with torch.no_grad():
        expected = topiarist.mask(net, plan)(x).flatten(2)
    torch.testing.assert_close(product, expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(weight.flatten(1) @ F.unfold(x, 3) + net[0].bias[:, None], expected)


def test_n_of_m_of_a_weight_without_known_inputs_is_left_alone():
    """A weight that is rearranged before it multiplies still says which dimension is summed over."""

    class Rearranged(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 8, 2))

        def forward(self, x):
            return torch.einsum("nd,edk->nek", x, self.weight)

    net = Rearranged()
    gone = topiarist.plan(net, torch.zeros(1, 8), structure=NM(2, 4)).masks(net)["weight"]
    check_groups(as_rows(net.weight.detach().abs().numpy(), 1), as_rows(gone.numpy(), 1), 2, 4)
