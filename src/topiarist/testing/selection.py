"""What every selection of the k lowest scores must do. Inherit the contract and override its fixture."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from topiarist.errors import InputError

Select = Callable[[Mapping[str, Tensor], int], Mapping[str, Tensor]]


def lowest(scores: Mapping[str, Tensor], k: int) -> dict[str, Tensor]:
    """The oracle: a stable sort of all scores, in NumPy and double precision."""
    flat = np.concatenate([score.double().numpy().ravel() for score in scores.values()])
    removed = np.zeros(len(flat), dtype=bool)
    removed[np.argsort(flat + 0.0, kind="stable")[:k]] = True
    parts = torch.split(torch.from_numpy(removed), [score.numel() for score in scores.values()])
    return {name: part.view(score.shape) for (name, score), part in zip(scores.items(), parts, strict=True)}


class SelectionContract:
    """Exactly k of n go, for every k from 0 to n, lowest first, ties in the order of tensors and indices.

    Example:
        class TestMine(SelectionContract):
            @pytest.fixture
            def select(self):
                return my_select
    """

    @pytest.fixture
    def select(self) -> Select:
        """The selection under test: a function of scores by name and k."""
        raise NotImplementedError("override the fixture `select`")

    def test_exactly_k_go_whatever_the_ties(self, select: Select) -> None:
        scores = {"a": _ties(7, seed=0), "b": _ties(5, seed=1), "c": _ties(1, seed=2)}
        for k in range(14):
            _check_same(select(scores, k), lowest(scores, k), k)

    def test_exactly_k_go_of_equal_scores(self, select: Select) -> None:
        scores = {"a": torch.full((4,), 0.5), "b": torch.full((3,), 0.5)}
        for k in range(8):
            _check_same(select(scores, k), lowest(scores, k), k)

    def test_negative_zeros_and_infinities_have_their_places(self, select: Select) -> None:
        scores = {"a": torch.tensor([0.0, -0.0, -1.0, torch.inf]), "b": torch.tensor([-0.0, -torch.inf, 1e-45, -1e-45])}
        for k in range(9):
            _check_same(select(scores, k), lowest(scores, k), k)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_every_float_is_ranked(self, select: Select, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(3)
        scores = {name: torch.randn(50, generator=generator, dtype=torch.float64).to(dtype) for name in "ab"}
        for k in (0, 1, 49, 50, 99, 100):
            _check_same(select(scores, k), lowest(scores, k), k)

    def test_scores_are_left_as_they_are(self, select: Select) -> None:
        scores = {"a": _ties(9, seed=4)}
        before = scores["a"].clone()
        select(scores, 5)
        assert torch.equal(scores["a"], before)

    def test_nan_is_refused_by_name(self, select: Select) -> None:
        scores = {"good": torch.zeros(3), "bad": torch.tensor([1.0, torch.nan])}
        for k in (0, 2, 5):
            assert "bad" in str(_refusal(select, scores, k))

    def test_impossible_numbers_are_refused(self, select: Select) -> None:
        for k in (-1, 4):
            assert str(k) in str(_refusal(select, {"a": torch.zeros(3)}, k))


def _ties(num: int, seed: int) -> Tensor:
    return torch.randint(-2, 3, (num,), generator=torch.Generator().manual_seed(seed)).float()


def _check_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], k: int) -> None:
    assert list(found) == list(expected), "a mask per tensor, in the order of the scores"
    assert sum(int(mask.sum()) for mask in found.values()) == k, f"asked for {k}"
    for name, mask in expected.items():
        assert found[name].dtype == torch.bool
        assert found[name].shape == mask.shape
        assert torch.equal(found[name], mask), f"of {name!r} other units go than the lowest, k={k}"


def _refusal(select: Select, scores: Mapping[str, Tensor], k: int) -> InputError | None:
    try:
        select(scores, k)
    except InputError as error:
        return error
    raise AssertionError(f"k={k} of {scores} is not refused")
