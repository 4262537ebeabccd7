"""The algebra of axes against NumPy: whatever was said of two axes stays true of every later removal."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from topiarist.graph import AxisGraph

SIZES = [1, 2, 3, 4, 6, 8, 12]


class Oracle:
    """Does to an `AxisGraph` what it is told, and remembers in NumPy what each step said."""

    def __init__(self):
        self.graph = AxisGraph()
        self.pool = []
        self.relations = []  # (whole, parts, "product" | "sum")
        self.equal = []
        self.said = []  # (axis, "pins" | "inexact" | "roles", what)

    def keep(self, *axes):
        self.pool.extend(axis for axis in axes if 0 < axis.size <= 200)

    def leaf(self, size):
        self.keep(self.graph.leaf(size))

    def split(self, axis, sizes):
        parts = self.graph.split(axis, sizes)
        assert [part.size for part in parts] == sizes
        self.relations.append((axis, parts, "product"))
        self.keep(*parts)

    def cut(self, axis, sizes):
        parts = self.graph.cut(axis, sizes)
        assert [part.size for part in parts] == sizes
        self.relations.append((axis, parts, "sum"))
        self.keep(*parts)

    def product(self, axes):
        self.relations.append((self.graph.product(axes), axes, "product"))
        self.keep(self.relations[-1][0])

    def sum(self, axes):
        self.relations.append((self.graph.sum(axes), axes, "sum"))
        self.keep(self.relations[-1][0])

    def unify(self, a, b):
        self.graph.unify(a, b, "a test")
        self.equal.append((a, b))

    def mark(self, axis, what):
        reason = f"reason {len(self.said)}"
        {"pins": self.graph.pin, "inexact": self.graph.mark_inexact, "roles": self.graph.mark_role}[what](axis, reason)
        self.said.append((axis, what, reason))

    def leaves(self):
        return list(dict.fromkeys(leaf for axis in self.pool for leaf in self.graph.leaves(axis)))

    def check(self, generator):
        """Remove at random from every leaf that may shrink, and compare all that was ever said."""
        leaves = self.leaves()
        gone = {
            leaf: torch.from_numpy(generator.random(leaf.size) < 0.4)
            for leaf in leaves
            if not leaf.pins and generator.random() < 0.7
        }
        removed = lambda axis: self.graph.removed(axis, gone).numpy()  # noqa: E731
        for whole, parts, kind in self.relations:
            assert np.array_equal(removed(whole), _combined([removed(part) for part in parts], kind))
        for a, b in self.equal:
            assert np.array_equal(removed(a), removed(b))
        kept = {leaf: leaf.size - int(where.sum()) for leaf, where in gone.items()}
        for axis in self.pool:
            assert self.graph.find(axis).size == axis.size == len(removed(axis))
            assert self.graph.measure(axis, kept) == axis.size - removed(axis).sum()
            assert self.graph.measure(axis, {}) == axis.size
            self.check_occurrences(axis)
        for axis, what, reason in self.said:
            leaves = [leaf for leaf in self.graph.leaves(axis) if leaf is not self.graph.one]
            assert all(reason in getattr(leaf, what) for leaf in leaves)

    def check_occurrences(self, axis):
        everything = np.zeros(axis.size, dtype=bool)
        for leaf in dict.fromkeys(self.graph.leaves(axis)):
            found = self.graph.occurrences(axis, leaf)
            assert len(found) == list(self.graph.leaves(axis)).count(leaf)
            for index in range(leaf.size):
                alone = self.graph.removed(axis, {leaf: torch.arange(leaf.size) == index}).numpy()
                assert np.array_equal(alone, np.any([(f == index).numpy() for f in found], axis=0))
            everything |= np.any([(f >= 0).numpy() for f in found], axis=0)
        assert everything.all()  # no position is lost


def _combined(parts, kind):
    if kind == "sum":
        return np.concatenate(parts) if parts else np.zeros(0, dtype=bool)
    result = np.zeros((), dtype=bool)
    for part in parts:
        result = np.logical_or(result[..., None], part)
    return result.ravel()


@st.composite
def programs(draw):
    """An oracle after a random program over axes of small sizes."""
    oracle = Oracle()
    for size in draw(st.lists(st.sampled_from(SIZES), min_size=2, max_size=4)):
        oracle.leaf(size)
    for _ in range(draw(st.integers(1, 14))):
        _step(draw, oracle)
    return oracle


def _step(draw, oracle):
    kind = draw(st.sampled_from(["leaf", "split", "cut", "product", "sum", "unify", "unify", "mark"]))
    axis = draw(st.sampled_from(oracle.pool))
    if kind == "leaf":
        oracle.leaf(draw(st.sampled_from(SIZES)))
    elif kind == "split":
        oracle.split(axis, draw(factors(axis.size)))
    elif kind == "cut":
        oracle.cut(axis, draw(summands(axis.size)))
    elif kind in ("product", "sum"):
        others = draw(st.lists(st.sampled_from(oracle.pool), min_size=1, max_size=3))
        size = math.prod(o.size for o in others) if kind == "product" else sum(o.size for o in others)
        if size <= 100:
            getattr(oracle, kind)(others)
    elif kind == "unify":
        oracle.unify(axis, draw(st.sampled_from([other for other in oracle.pool if other.size == axis.size])))
    else:
        oracle.mark(axis, draw(st.sampled_from(["pins", "inexact", "roles"])))


@st.composite
def factors(draw, size):
    sizes = []
    while size > 1 and len(sizes) < 3:
        sizes.append(draw(st.sampled_from([d for d in range(1, size + 1) if size % d == 0])))
        size //= sizes[-1]
    return [*sizes, size]


@st.composite
def summands(draw, size):
    marks = sorted(draw(st.lists(st.integers(0, size), max_size=3)))
    return [high - low for low, high in pairwise([0, *marks, size])]


@settings(max_examples=400, deadline=None)
@given(programs(), st.integers(0, 2**32 - 1))
def test_what_was_said_stays_true(oracle, seed):
    generator = np.random.default_rng(seed)
    for _ in range(3):
        oracle.check(generator)


@settings(max_examples=100, deadline=None)
@given(programs())
def test_nothing_contains_itself(oracle):
    for axis in oracle.pool:
        assert all(0 < leaf.size <= axis.size for leaf in oracle.graph.leaves(axis))
        assert repr(axis)


def check_often(oracle):
    for seed in range(20):
        oracle.check(np.random.default_rng(seed))


def test_a_lost_tie_is_caught(monkeypatch):
    """The oracle's own control: an algebra that forgets to merge the second factor."""
    monkeypatch.setattr(AxisGraph, "_merge_all", lambda self, left, right: self._merge(left[0], right[0]))
    oracle = Oracle()
    a, b = oracle.graph.leaf(12), oracle.graph.leaf(12)
    oracle.keep(a, b)
    oracle.split(a, [3, 4])
    oracle.split(b, [3, 4])
    oracle.unify(a, b)
    with pytest.raises(AssertionError):
        check_often(oracle)


# ------------------------------------------------------------------------------- what must not be pinned, or must


@pytest.fixture
def graph():
    return AxisGraph()


def test_leaves_unify_without_pins(graph):
    a, b = graph.leaf(5), graph.leaf(5)
    graph.unify(a, b, "add")
    assert graph.find(a) is graph.find(b)
    assert not graph.find(a).pins


@pytest.mark.parametrize("first", ["split", "unify"])
def test_a_refinement_reaches_whoever_is_unified_before_or_after(graph, first):
    a, b = graph.leaf(12), graph.leaf(12)
    if first == "unify":
        graph.unify(a, b, "add")
    heads, dim = graph.split(a, [3, 4])
    graph.unify(a, b, "add")
    assert list(graph.leaves(b)) == [graph.find(heads), graph.find(dim)]
    gone = graph.removed(b, {graph.find(heads): torch.tensor([False, True, False])})
    assert gone.tolist() == [False] * 4 + [True] * 4 + [False] * 4


def test_a_fused_projection_is_a_sum_of_products(graph):
    qkv = graph.leaf(24)
    three, heads, dim = graph.split(qkv, [3, 2, 4])
    parts = graph.cut(qkv, [8, 8, 8])
    assert all(list(graph.leaves(part)) == [graph.find(heads), graph.find(dim)] for part in parts)
    assert not graph.find(heads).pins
    assert not graph.find(three).pins


def test_cut_first_then_split_ties_the_factors_of_all_parts(graph):
    qkv = graph.leaf(24)
    q, k, v = graph.cut(qkv, [8, 8, 8])
    three, heads, dim = graph.split(qkv, [3, 2, 4])
    for part in (q, k, v):
        assert list(graph.leaves(part)) == [graph.find(heads), graph.find(dim)]
    assert graph.find(three).size == 3
    assert all(leaf.pins for leaf in graph.leaves(three))  # no index of it can go alone


def test_a_concatenation_cut_elsewhere_finds_the_common_refinement(graph):
    a, b = graph.leaf(4), graph.leaf(6)
    whole = graph.sum([a, b])
    left, right = graph.cut(whole, [7, 3])
    assert [leaf.size for leaf in graph.leaves(whole)] == [4, 3, 3]
    assert graph.find(left).size == 7
    assert list(graph.leaves(right)) == list(graph.leaves(b))[1:]


@pytest.mark.parametrize(("size", "first", "second"), [(12, [3, 4], [4, 3]), (12, [2, 6], [4, 3])])
def test_factors_that_do_not_nest(graph, size, first, second):
    axis = graph.leaf(size)
    graph.split(axis, first)
    nests = all(a % b == 0 or b % a == 0 for a, b in zip(_marks(first), _marks(second), strict=True))
    parts = graph.split(axis, second, "a reshape")
    assert [part.size for part in parts] == second
    pinned = all(leaf.pins for leaf in graph.leaves(axis))
    assert pinned == (not nests)
    if pinned:
        assert all("does not nest" in reason for part in parts for leaf in graph.leaves(part) for reason in leaf.pins)


def _marks(sizes):
    return list(np.cumprod(sizes))[:-1]


def test_a_product_cut_inside_a_row_is_pinned(graph):
    axis = graph.product([graph.leaf(3), graph.leaf(4)])
    graph.cut(axis, [5, 7])
    assert all(leaf.pins for leaf in graph.leaves(axis))


def test_a_product_cut_between_rows_is_free(graph):
    rows, row = graph.leaf(3), graph.leaf(4)
    first, second = graph.cut(graph.product([rows, row]), [4, 8])
    assert list(graph.leaves(first)) == [row]
    assert [leaf.size for leaf in graph.leaves(second)] == [2, 4]
    assert not any(leaf.pins for leaf in graph.leaves(second))


def test_axes_of_one_index_are_one_and_pinned(graph):
    assert graph.leaf(1) is graph.leaf(1) is graph.one
    assert graph.product([graph.leaf(1), graph.leaf(1)]) is graph.one
    assert graph.one.pins


def test_ones_vanish_from_products_and_nothing_from_sums(graph):
    a = graph.leaf(4)
    assert graph.product([graph.one, a, graph.one]) is a
    assert graph.sum([a]) is a
    assert graph.split(a, [1, 4, 1]) == [graph.one, a, graph.one]
    assert [part.size for part in graph.cut(a, [0, 4, 0])] == [0, 4, 0]


def test_different_sizes_never_unify(graph):
    a, b = graph.leaf(4), graph.leaf(6)
    graph.unify(a, b, "a mistake")
    assert graph.find(a) is not graph.find(b)
    assert "a mistake" in next(iter(graph.find(a).pins))


def test_the_young_are_those_that_nobody_knew_before(graph):
    old = graph.leaf(6)
    age = graph.age
    new, met = graph.leaf(4), graph.leaf(6)
    graph.unify(old, met, "add")
    parts = graph.split(graph.leaf(8), [2, 4])
    assert graph.younger(age) == [new, *parts]
    assert graph.younger(graph.age) == []


def test_division_by_unification_makes_nobody_young(graph):
    a, b = graph.leaf(12), graph.leaf(12)
    graph.split(a, [2, 6])
    graph.split(b, [4, 3])
    graph.split(b, [2, 2, 3])
    age = graph.age
    graph.unify(a, b, "add")
    assert graph.younger(age) == []


def test_long_programs_stay_quick(graph):
    """Cost does not grow with size: a million indices, a thousand steps."""
    axis = graph.leaf(2**20)
    for _ in range(500):
        other = graph.leaf(2**20)
        graph.unify(axis, other, "add")
        graph.split(other, [2**10, 2**10])
    assert len(list(graph.leaves(axis))) == 2
