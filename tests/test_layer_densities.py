"""Allocations that give each layer a density: golden values, the published loops, and what always holds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topiarist.allocation import Candidates, ErdosRenyi, Owl, UniformPlus, fit
from topiarist.allocation.density import densities
from topiarist.allocation.erk import ErdosRenyi as Rule
from topiarist.allocation.owl import block_of
from topiarist.errors import BudgetError, InputError
from topiarist.plan import Budget, Units

LENET = {"fc1": (300, 784), "fc2": (100, 300), "fc3": (10, 100)}
CONVOLUTIONS = {"c1": (64, 3, 3, 3), "c2": (128, 64, 3, 3), "c3": (256, 128, 3, 3), "fc": (10, 256)}


def of_shapes(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    units = tuple(Units(name, w.numel(), (), name) for name, w in weights.items())
    return Candidates(units, {name: w.abs().flatten() for name, w in weights.items()}, weights.__getitem__)


def left(removed):
    return {name: 1 - float(mask.double().mean()) for name, mask in removed.items()}


def published(shapes, density, kernel=True):
    """RigL's own loop: fix the most violating layer dense, solve ε over the rest, until none is above 1."""
    nums = {name: math.prod(shape) for name, shape in shapes.items()}
    sizes = {name: shape if kernel else shape[:2] for name, shape in shapes.items()}
    raw = {name: sum(size) / math.prod(size) for name, size in sizes.items()}
    dense = set()
    while True:
        rest = [name for name in shapes if name not in dense]
        room = density * sum(nums.values()) - sum(nums[name] for name in dense)
        scale = room / sum(raw[name] * nums[name] for name in rest)
        worst = max(rest, key=lambda name: raw[name])
        if scale * raw[worst] <= 1:
            return {name: 1.0 if name in dense else scale * raw[name] for name in shapes}
        dense.add(worst)


@pytest.mark.parametrize(
    ("shapes", "sparsity", "expected"),
    [
        (LENET, 0.9, [0.0796, 0.2302, 1.0]),
        (LENET, 0.95, [0.0385, 0.1113, 0.9185]),
        (LENET, 0.98, [0.0154, 0.0445, 0.3674]),
        (CONVOLUTIONS, 0.9, [1.0, 0.1507, 0.0742, 1.0]),
    ],
)
def test_golden_densities(shapes, sparsity, expected):
    candidates = of_shapes(shapes)
    removed, achieved = fit(
        ErdosRenyi(), candidates, Budget(sparsity=sparsity), lambda r: {"sparsity": 1 - share_left(r)}
    )
    for found, golden, shape in zip(left(removed).values(), expected, shapes.values(), strict=True):
        assert found == pytest.approx(golden, abs=5e-5 + 1 / math.prod(shape))  # four digits, and whole weights
    assert round(achieved["sparsity"] * candidates.num_units) == math.floor(sparsity * candidates.num_units + 0.5)


def share_left(removed):
    return sum(int((~mask).sum()) for mask in removed.values()) / sum(mask.numel() for mask in removed.values())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 12), min_size=2, max_size=4), min_size=1, max_size=6),
    st.floats(0.01, 0.99),
    st.booleans(),
)
def test_the_solution_is_that_of_the_published_loop(shapes, density, kernel):
    named = {f"l{i}": tuple(shape) for i, shape in enumerate(shapes)}
    nums = {name: math.prod(shape) for name, shape in named.items()}
    raw = {name: Rule(kernel)._raw(shape) for name, shape in named.items()}
    found = densities(nums, density, lambda ε: {n: min(1.0, ε * r) for n, r in raw.items()}, 0.0, 1 / min(raw.values()))
    expected = published(named, density, kernel)
    assert found == pytest.approx(expected, rel=1e-9)
    assert max(found.values()) <= 1
    assert sum(found[n] * nums[n] for n in nums) == pytest.approx(density * sum(nums.values()), rel=1e-9)


def test_a_loop_that_clips_without_solving_again_is_caught():
    expected = published(CONVOLUTIONS, 0.1)
    nums = {name: math.prod(shape) for name, shape in CONVOLUTIONS.items()}
    raw = {name: sum(shape) / math.prod(shape) for name, shape in CONVOLUTIONS.items()}
    scale = 0.1 * sum(nums.values()) / sum(raw[n] * nums[n] for n in nums)
    sabotaged = {n: min(1.0, scale * r) for n, r in raw.items()}
    assert sabotaged != pytest.approx(expected, rel=1e-3)


def test_kernels_count_only_in_erk():
    assert left(ErdosRenyi()(of_shapes(LENET), 0.9)) == left(ErdosRenyi(kernel=False)(of_shapes(LENET), 0.9))
    two = {"point": (64, 64, 1, 1), "wide": (64, 64, 5, 5)}
    er = left(ErdosRenyi(kernel=False)(of_shapes(two), 0.98))
    assert er["point"] == pytest.approx(er["wide"], abs=1e-3)
    erk = left(ErdosRenyi()(of_shapes(two), 0.98))
    assert erk["point"] / erk["wide"] == pytest.approx(130 / 138 * 25, rel=1e-2)


# ------------------------------------------------------------------ uniform+


def test_uniform_plus_keeps_the_first_convolution_and_a_fifth_of_the_last_layer():
    shapes = {"stem": (8, 3, 3, 3), "mid": (16, 8, 3, 3), "more": (16, 16, 3, 3), "head": (10, 16)}
    for sparsity in (0.1, 0.5, 0.75, 0.85):
        found = left(UniformPlus()(of_shapes(shapes), sparsity))
        nums = {name: math.prod(shape) for name, shape in shapes.items()}
        assert found["stem"] == 1
        assert found["mid"] == pytest.approx(found["more"], abs=1e-3)
        room = (1 - sparsity) * sum(nums.values()) - nums["stem"]
        alike = room / (sum(nums.values()) - nums["stem"])
        if alike < 0.2:  # the last layer has its fifth, the others what remains
            alike = (room - 0.2 * nums["head"]) / (nums["mid"] + nums["more"])
        assert found["mid"] == pytest.approx(alike, abs=1e-3)
        assert found["head"] == pytest.approx(max(0.2, alike), abs=1e-2)


def test_uniform_plus_refuses_what_it_must_not_do():
    candidates = of_shapes({"stem": (8, 3, 3, 3), "mid": (16, 8, 3, 3), "head": (10, 16)})
    with pytest.raises(BudgetError, match=r"'stem' keeps 216, 'head' keeps 32"):
        fit(UniformPlus(), candidates, Budget(sparsity=0.9), lambda r: {"sparsity": 1 - share_left(r)})
    assert left(UniformPlus()(of_shapes(LENET), 0.5)) == pytest.approx({"fc1": 0.5, "fc2": 0.5, "fc3": 0.5})
    assert left(UniformPlus()(of_shapes({"one": (4, 4)}), 1.0)) == {"one": 0.0}


# ------------------------------------------------------------------ OWL


def owl_of_the_paper(scores, sparsity, outlier, band):
    """Layers' sparsities in NumPy, one layer a block, where none is clipped and all are of one size."""
    ratio = np.array([np.mean(s > outlier * s.mean()) for s in scores])
    ratio = (ratio - ratio.min()) / (ratio.max() - ratio.min()) * band * 2
    return sparsity - (ratio - ratio.mean())


def test_owl_is_the_formula_of_the_paper():
    generator = torch.Generator().manual_seed(0)
    scores = {f"{i}.w": torch.randn(1000, generator=generator).abs() ** (1 + i) for i in range(5)}
    units = tuple(Units(name, 1000, (), name[0]) for name in scores)
    removed = Owl(5.0, 0.08)(Candidates(units, scores), 0.7)
    expected = owl_of_the_paper([s.numpy() for s in scores.values()], 0.7, 5.0, 0.08)
    assert [float(mask.double().mean()) for mask in removed.values()] == pytest.approx(expected, abs=1e-3)
    sabotaged = owl_of_the_paper([-s.numpy() for s in scores.values()], 0.7, 5.0, 0.08)
    assert sabotaged != pytest.approx(expected, abs=1e-2)


def test_owl_takes_the_layers_of_a_block_together():
    assert block_of("layer1.0.conv1") == "layer1.0"
    assert block_of("stem.conv") == "stem.conv"
    generator = torch.Generator().manual_seed(1)
    names = ["blocks.0.a", "blocks.0.b", "blocks.1.a", "blocks.1.b"]
    scores = {n: torch.randn(400, generator=generator).abs() ** (1 + i) for i, n in enumerate(names)}
    candidates = Candidates(tuple(Units(n, 400, (), n) for n in names), scores)
    found = left(Owl(3.0, 0.1)(candidates, 0.5))
    assert found["blocks.0.a"] == found["blocks.0.b"] != found["blocks.1.a"] == found["blocks.1.b"]
    pooled = [np.concatenate([scores[n].numpy() for n in names[i : i + 2]]) for i in (0, 2)]
    expected = 1 - owl_of_the_paper(pooled, 0.5, 3.0, 0.1)
    assert [found["blocks.0.a"], found["blocks.1.a"]] == pytest.approx(expected, abs=3e-3)
    assert len(set(left(Owl(3.0, 0.1, "layer")(candidates, 0.5)).values())) > 2


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.floats(0, 1), st.floats(0, 0.5))
def test_owl_meets_the_level_also_where_densities_are_clipped(nums, level, band):
    generator = torch.Generator().manual_seed(len(nums))
    scores = {f"{i}.w": torch.rand(n, generator=generator) ** (i + 1) for i, n in enumerate(nums)}
    candidates = Candidates(tuple(Units(name, len(s), (), name[0]) for name, s in scores.items()), scores)
    removed = Owl(1.5, band)(candidates, level)
    num = sum(int(mask.sum()) for mask in removed.values())
    assert abs(num - level * sum(nums)) <= len(nums) / 2 + 1e-6


def test_owl_refuses_what_is_no_number():
    for wrong in ({"outlier": -1.0}, {"band": math.inf}, {"by": "blok"}):
        with pytest.raises(InputError):
            Owl(**wrong)
