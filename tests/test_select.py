"""Exactly k go: against a stable sort, with ties on purpose, with what is gone and what is kept, in bounded memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from topiarist.allocation.select import select
from topiarist.errors import InputError
from topiarist.testing.selection import SelectionContract, lowest

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.fixture(scope="module", autouse=True, params=["sorted", "radix select"])
def way(request):
    """Few scores are sorted and many are not: everything holds for both ways."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("topiarist.allocation.select._SORTED", 1 << 15 if request.param == "sorted" else 0)
        yield


class TestSelect(SelectionContract):
    @pytest.fixture
    def select(self):
        return select


def threshold_selection(scores, k):
    """The mistake of four of five libraries: all that is at most the k-th score goes."""
    flat = torch.cat([score.flatten() for score in scores.values()])
    if not 0 <= k <= len(flat) or flat.isnan().any():
        raise InputError(f"{k} bad")
    cut = flat.sort().values[k - 1] if k else -torch.inf
    return {name: score <= cut for name, score in scores.items()}


def last_ties_first(scores, k):
    """Exactly k, but of equal scores the last go."""
    flipped = {name: score.flip(0) for name, score in reversed(scores.items())}
    found = lowest(flipped, k)
    return {name: found[name].flip(0) for name in scores}


@pytest.mark.parametrize("sabotaged", [threshold_selection, last_ties_first])
def test_the_contract_catches_broken_selections(sabotaged):
    with pytest.raises(AssertionError):
        SelectionContract().test_exactly_k_go_whatever_the_ties(sabotaged)
    with pytest.raises(AssertionError):
        SelectionContract().test_exactly_k_go_of_equal_scores(sabotaged)


def test_the_contract_catches_nan_and_numbers_let_through():
    with pytest.raises(AssertionError):
        SelectionContract().test_nan_is_refused_by_name(lowest)
    with pytest.raises(AssertionError):
        SelectionContract().test_impossible_numbers_are_refused(lowest)


few_values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.5, 1e-3, -1e-3, 3e38, -3e38, 65504.0, float("inf")])
any_value = st.floats(allow_nan=False, width=32)


@st.composite
def score_sets(draw):
    values = draw(st.sampled_from([few_values, any_value]))
    sizes = draw(st.lists(st.integers(0, 9), min_size=1, max_size=4))
    return {
        f"t{i}": torch.tensor(draw(st.lists(values, min_size=n, max_size=n)), dtype=torch.float64).to(
            draw(st.sampled_from(DTYPES))
        )
        for i, n in enumerate(sizes)
    }


@settings(max_examples=200, deadline=None)
@given(score_sets(), st.data())
def test_like_a_stable_sort(scores, data):
    k = data.draw(st.integers(0, sum(s.numel() for s in scores.values())))
    found, expected = select(scores, k), lowest(scores, k)
    assert sum(int(mask.sum()) for mask in found.values()) == k
    for name in scores:
        assert torch.equal(found[name], expected[name])


@settings(max_examples=100, deadline=None)
@given(score_sets(), st.data())
def test_gone_go_first_and_kept_never(scores, data):
    fates = {
        n: torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=s.numel(), max_size=s.numel())), dtype=int)
        for n, s in scores.items()
    }
    gone, keep = {n: f == 1 for n, f in fates.items()}, {n: f == 2 for n, f in fates.items()}
    least = sum(int(g.sum()) for g in gone.values())
    most = sum(s.numel() for s in scores.values()) - sum(int(m.sum()) for m in keep.values())
    k = data.draw(st.integers(least, most))
    found = select(scores, k, gone, keep)
    keys = sorted(
        ({1: 0, 0: 1, 2: 2}[int(fates[n][i])], float(s[i]) + 0.0, place, i)
        for place, (n, s) in enumerate(scores.items())
        for i in range(s.numel())
    )
    names = [*scores]
    expected = {(names[place], i) for _, _, place, i in keys[:k]}
    assert {(n, i) for n in found for i in found[n].nonzero().flatten().tolist()} == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_chunks(dtype, monkeypatch):
    monkeypatch.setattr("topiarist.allocation.select._STEP", 97)
    scores = {
        n: torch.from_numpy(np.random.default_rng(i).normal(size=1000).round(1)).to(dtype) for i, n in enumerate("abc")
    }
    for k in (0, 1, 500, 1500, 2999, 3000):
        found, expected = select(scores, k), lowest(scores, k)
        assert all(torch.equal(found[n], expected[n]) for n in scores)


def test_shapes_strides_and_autograd():
    scores = torch.randn(6, 8).t().requires_grad_()
    found = select({"w": scores}, 11)["w"]
    assert found.shape == (8, 6)
    assert torch.equal(found, lowest({"w": scores.detach().contiguous()}, 11)["w"])
    assert not found.requires_grad


@pytest.mark.parametrize("masks", [
    {"gone": {"w": torch.zeros(2)}},
    {"gone": {"w": torch.zeros(3, dtype=torch.bool)}},
    {"keep": {"v": torch.zeros(2, dtype=torch.bool)}},
    {"gone": {"w": torch.tensor([True, False])}, "keep": {"w": torch.tensor([True, False])}},
])  # fmt: skip
def test_masks_that_do_not_fit_are_refused(masks):
    with pytest.raises(InputError):
        select({"w": torch.ones(2)}, 1, **masks)


def test_numbers_that_gone_and_kept_forbid_are_refused():
    gone, keep = {"w": torch.tensor([True, False, False])}, {"w": torch.tensor([False, False, True])}
    for k in (0, 3):
        with pytest.raises(InputError, match="possible is 1 to 2"):
            select({"w": torch.ones(3)}, k, gone, keep)


def test_integers_are_refused():
    with pytest.raises(InputError, match=r"'w'.*int64"):
        select({"w": torch.arange(3)}, 1)


class Allocations(TorchDispatchMode):
    """The bytes of every new storage that an operator makes."""

    def __init__(self, known):
        super().__init__()
        self.known, self.kept, self.sizes = {t.untyped_storage().data_ptr() for t in known}, [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in self.known:
                self.known.add(tensor.untyped_storage().data_ptr())
                self.kept.append(tensor)  # so that no address comes twice
                self.sizes.append(tensor.untyped_storage().nbytes())
        return result


def largest_beside_masks(select, ties):
    scores = {name: torch.randn(300_000, generator=torch.Generator().manual_seed(i)) for i, name in enumerate("ab")}
    scores = {name: score.round() if ties else score for name, score in scores.items()}
    with Allocations(scores.values()) as allocations:
        masks = select(scores, 270_000)
    sizes = sorted(allocations.sizes)
    for mask in masks.values():
        sizes.remove(mask.numel())
    return sizes[-1]


def sorting_selection(scores, k):
    return {name: score < score.sort().values[k // 2] for name, score in scores.items()}


@pytest.mark.parametrize("ties", [False, True])
def test_nothing_grows_with_the_scores_but_the_masks(ties):
    assert largest_beside_masks(select, ties) <= 1 << 18
    assert largest_beside_masks(sorting_selection, ties) > 1e6
