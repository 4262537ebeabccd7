"""Schedules: published values, ends, monotony, and the check of users' functions."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topiarist.errors import InputError
from topiarist.schedule import ConstantFraction, cubic, exponential, linear, one_shot, resolve

ALL = [one_shot, linear, cubic, exponential, ConstantFraction(0.2), ConstantFraction(0.5)]
fractions = st.floats(0, 1)


@pytest.mark.parametrize("schedule", ALL)
@given(fractions, fractions, st.floats(0, 0.999999))
def test_from_nothing_to_final_without_falling(schedule, one, other, final):
    early, late = sorted((one, other))
    assert schedule(0.0, final) == 0
    assert schedule(1.0, final) == final
    assert 0 <= schedule(early, final) <= schedule(late, final) <= final


@pytest.mark.parametrize("schedule", [one_shot, linear, cubic, exponential])
def test_all_can_go(schedule):
    assert schedule(0.0, 1.0) == 0
    assert schedule(1.0, 1.0) == 1


def test_cubic_has_the_published_values():
    golden = [0, 0.2439, 0.4392, 0.5913, 0.7056, 0.7875, 0.8424, 0.8757, 0.8928, 0.8991, 0.9]
    assert [cubic(step / 10, 0.9) for step in range(11)] == pytest.approx(golden, abs=5e-5)
    assert cubic(0.1, 1.0) == pytest.approx(0.271)


def test_constant_fraction_has_the_published_densities():
    golden = [0.8, 0.64, 0.512, 0.4096, 0.3277, 0.2621, 0.2097, 0.1678, 0.1342, 0.1074, 0.0859, 0.0687]
    schedule, final = ConstantFraction(0.2), 1 - 0.8**12
    assert schedule.num_steps(final) == 12
    assert [1 - schedule(step / 12, final) for step in range(1, 13)] == pytest.approx(golden, abs=5e-5)


@pytest.mark.parametrize(("final", "num_steps"), [(0.0, 0), (1e-12, 1), (0.2, 1), (0.2001, 2), (0.36, 2), (0.9, 11)])
def test_constant_fraction_takes_the_fewest_steps(final, num_steps):
    schedule = ConstantFraction(0.2)
    assert schedule.num_steps(final) == num_steps
    left = [1 - schedule(step / max(num_steps, 1), final) for step in range(num_steps + 1)]
    for before, after in itertools.pairwise(left[:-1]):
        assert after / before == pytest.approx(0.8)
    assert left[-1] == 1 - final


def test_exponential_shrinks_what_remains_by_one_factor():
    left = [1 - exponential(step / 5, 0.99) for step in range(6)]
    assert [after / before for before, after in itertools.pairwise(left)] == pytest.approx([0.01**0.2] * 5)


@pytest.mark.parametrize("schedule", ALL)
@pytest.mark.parametrize("arguments", [(-0.1, 0.5), (1.1, 0.5), (0.5, -0.1), (0.5, 1.1), (float("nan"), 0.5)])
def test_fractions_out_of_range_are_refused(schedule, arguments):
    with pytest.raises(InputError, match=r"\[0, 1\]"):
        schedule(*arguments)


def test_a_constant_fraction_never_removes_all():
    for ask in (lambda s: s.num_steps(1.0), lambda s: s(0.5, 1.0), lambda s: s(1.0, 1.0)):
        with pytest.raises(InputError, match="never removes all"):
            ask(ConstantFraction())
    for p in (0.0, 1.0, float("nan")):
        with pytest.raises(InputError):
            ConstantFraction(p)


def test_words():
    words = {"one-shot": one_shot, "linear": linear, "cubic": cubic, "exponential": exponential}
    assert all(resolve(word) is schedule for word, schedule in words.items())
    assert resolve("constant-fraction") == ConstantFraction(0.2)
    with pytest.raises(InputError, match="cubic"):
        resolve("cubik")
    for wrong in (0.5, ConstantFraction):
        with pytest.raises(InputError, match="function"):
            resolve(wrong)


@pytest.mark.parametrize("schedule", [*ALL, lambda progress, final: final * progress**2])
def test_functions_of_progress_are_taken_as_they_are(schedule):
    assert resolve(schedule) is schedule


@pytest.mark.parametrize(("broken", "message"), [
    (lambda progress, final: final, "begin"),
    (lambda progress, final: 0.9 * progress, "reach"),
    (lambda progress, final: final * (2 * progress if progress < 0.6 else progress), "fall"),
    (lambda progress, final: float("nan"), "begin"),
    (lambda progress, final: final * progress if progress < 0.5 else float("nan"), "fall"),
])  # fmt: skip
def test_functions_that_are_no_schedule_are_refused(broken, message):
    with pytest.raises(InputError, match=message):
        resolve(broken)
