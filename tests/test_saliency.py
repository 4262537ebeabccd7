"""Criteria: their contract, their formulas against loops, their words, and the door that checks scores."""

from __future__ import annotations

import math

import pytest
import torch

from topiarist.errors import InputError
from topiarist.plan import Member, Units
from topiarist.saliency import Gradient, Magnitude, Random, Slices, check_finite, needs, resolve, score
from topiarist.testing.saliency import SaliencyContract, slices


class TestL1(SaliencyContract):
    @pytest.fixture
    def criterion(self):
        return Magnitude(p=1)


class TestL2(SaliencyContract):
    @pytest.fixture
    def criterion(self):
        return Magnitude(p=2)


class TestGradient(SaliencyContract):
    @pytest.fixture
    def criterion(self):
        return Gradient()


class TestRandom(SaliencyContract):
    equivariant = False

    @pytest.fixture
    def criterion(self):
        return Random(seed=3)


class TestUserFunction(SaliencyContract):
    @pytest.fixture
    def criterion(self):
        return lambda slices: sum(w.amax(1) for w in slices.weights)


def by_place(slices):
    return torch.arange(len(slices.weights[0]), dtype=torch.float64)


def in_place(slices):
    for weight in slices.weights:
        weight.abs_()
    return sum(w.sum(1) for w in slices.weights)


def drawing(slices):
    return torch.rand(slices.units.num)


def logarithm(slices):
    return sum(w.sum(1) for w in slices.weights).sub(100).log()


def one_too_few(slices):
    return slices.weights[0].sum(1)[1:]


def test_the_contract_catches_broken_criteria():
    contract = SaliencyContract()
    with pytest.raises(AssertionError):
        contract.test_scores_follow_their_units(by_place, (4,))
    with pytest.raises(AssertionError):
        contract.test_inputs_and_random_state_stay(in_place)
    with pytest.raises(AssertionError):
        contract.test_inputs_and_random_state_stay(drawing)
    with pytest.raises(AssertionError):
        contract.test_the_same_twice(drawing)
    for broken in (logarithm, one_too_few):
        with pytest.raises(InputError):
            contract.test_one_finite_float_per_unit(broken, (4,))


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("widths", [(1,), (5,), (3, 1, 4)])
def test_magnitude_is_the_norm_over_all_members(p, widths):
    there = slices(widths)
    expected = [
        sum(abs(float(w[j, i])) ** p for w in there.weights for i in range(w.shape[1])) ** (1 / p) for j in range(6)
    ]
    torch.testing.assert_close(Magnitude(p)(there), torch.tensor(expected, dtype=torch.float64), rtol=1e-13, atol=0)


@pytest.mark.parametrize("widths", [(1,), (5,), (3, 1, 4)])
def test_gradient_is_the_sum_of_products(widths):
    there = slices(widths)
    expected = [
        sum(
            abs(float(w[j, i]) * float(g[j, i]))
            for w, g in zip(there.weights, there.gradients, strict=True)
            for i in range(w.shape[1])
        )
        for j in range(6)
    ]
    torch.testing.assert_close(Gradient()(there), torch.tensor(expected, dtype=torch.float64), rtol=1e-13, atol=0)


@pytest.mark.parametrize("criterion", [Magnitude(1), Magnitude(2), Gradient()])
@pytest.mark.parametrize("widths", [(1,), (3, 2)])
def test_signs_do_not_matter(criterion, widths):
    there = slices(widths)
    flipped = Slices(there.units, tuple(-w for w in there.weights), there.stats)
    assert torch.equal(criterion(flipped), criterion(there))
    assert bool((criterion(there) >= 0).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_norms_neither_overflow_nor_vanish(dtype):
    tiny, huge = torch.finfo(dtype).tiny, torch.finfo(dtype).max
    weights = torch.tensor([[tiny, tiny], [huge, huge]], dtype=dtype)
    scores = score(Magnitude(2), Slices(Units("w", 2, ()), (weights,)))
    expected = [math.sqrt(2) * float(w) for w in weights[:, 0]]
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)


def test_units_without_weights_score_nothing():
    empty = Slices(Units("axis", 3, ()), ())
    assert score(Magnitude(), empty).tolist() == [0, 0, 0]
    assert score(Gradient(), empty).tolist() == [0, 0, 0]
    assert score(Random(), empty).shape == (3,)


def test_random_depends_on_seed_and_name_only():
    def draw(seed, name):
        return Random(seed)(Slices(Units(name, 50, ()), (torch.zeros(50, 1),)))

    first = draw(0, "a")
    torch.manual_seed(1)
    torch.rand(3)
    assert torch.equal(draw(0, "a"), first)
    assert not torch.equal(draw(1, "a"), first)
    assert not torch.equal(draw(0, "b"), first)
    assert bool(((first >= 0) & (first < 1)).all())


def test_words():
    assert resolve("l1") == Magnitude(p=1)
    assert resolve("l2") == Magnitude(p=2)
    assert resolve("gradient") == Gradient()
    assert resolve("random") == Random(seed=0)
    assert resolve(by_place) is by_place
    with pytest.raises(InputError, match="gradient"):
        resolve("gradeint")
    for wrong in (3, Magnitude):
        with pytest.raises(InputError, match="function"):
            resolve(wrong)
    with pytest.raises(InputError, match="1 or 2"):
        Magnitude(p=3)


def test_needs():
    assert needs(Gradient()) == {"gradients"}
    assert needs(Magnitude()) == frozenset()
    assert needs(by_place) == frozenset()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", ["weights", "gradients"])
def test_numbers_that_are_none_are_refused_with_the_tensors_name(bad, which):
    there = slices((4, 2))
    getattr(there, which)[1][3, 1] = bad
    with pytest.raises(InputError, match=rf"{which} of 'layer1.weight' .* entry 7 is {bad}"):
        score(Gradient(), there)


def test_the_units_are_named_where_members_are_not_all_parameters():
    units = Units("axis0", 2, (Member("bn.running_mean", 0), Member("bn.weight", 0)))
    with pytest.raises(InputError, match="axis0"):
        score(Magnitude(), Slices(units, (torch.full((2, 1), math.nan),)))


@pytest.mark.parametrize("wrong", [
    torch.zeros(5), torch.zeros(6, 1), torch.zeros(6, dtype=torch.int64), [0.0] * 6, None,
    torch.full((6,), math.nan), torch.full((6,), math.inf),
])  # fmt: skip
def test_wrong_scores_are_refused_with_the_units_name(wrong):
    with pytest.raises(InputError, match=r"layer0\.out"):
        score(lambda slices: wrong, slices((2,)))


def test_missing_gradients_are_refused():
    there = slices((2,))
    with pytest.raises(InputError, match="gradients"):
        score(Gradient(), Slices(there.units, there.weights))


@pytest.mark.parametrize("tensors", [
    {"weights": (torch.zeros(5, 2),)},
    {"weights": (torch.zeros(6),)},
    {"weights": (torch.zeros(6, 2),), "stats": {"gradients": (torch.zeros(6, 3),)}},
])  # fmt: skip
def test_slices_that_do_not_fit_are_refused(tensors):
    with pytest.raises(InputError):
        Slices(slices((1,)).units, **tensors)


def test_scores_carry_no_graph():
    weight = torch.ones(2, 3, requires_grad=True)
    assert not score(lambda s: s.weights[0].sum(1), Slices(Units("w", 2, ()), (weight,))).requires_grad


def test_check_finite_passes_what_is_finite():
    check_finite({"a": torch.empty(0), "b": torch.tensor([-1.0, 65504.0], dtype=torch.float16)}, "weights")


def test_check_finite_looks_again_where_a_sum_overflows():
    most = torch.finfo(torch.float32).max
    check_finite({"a": torch.tensor([most, most])}, "weights")
    for bad in ([most, most, math.nan], [math.inf, -math.inf], [-math.inf, 1.0]):
        with pytest.raises(InputError, match="must be finite"):
            check_finite({"a": torch.tensor(bad)}, "weights")
