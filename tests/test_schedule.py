"""Schedules: published values, ends, monotony, and the check of users' functions."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topiarist.errors import InputError
from topiarist.plan import Units
from topiarist.schedule import (
    ConstantFraction,
    DenseSparseDense,
    OneCycle,
    PerLayer,
    Polynomial,
    Window,
    cosine,
    cubic,
    exponential,
    linear,
    may_fall,
    one_shot,
    resolve,
    tried,
)

ALL = [
    one_shot, linear, cubic, exponential, ConstantFraction(0.2), ConstantFraction(0.5), Polynomial(2), Polynomial(0.5),
    cosine, OneCycle(), OneCycle(alpha=5, beta=1), Window(cubic, 0.1, 0.8), Window(exponential, 0.0, 0.5),
]  # fmt: skip
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


@given(fractions, fractions)
def test_polynomials_have_their_special_cases(progress, final):
    assert Polynomial(3)(progress, final) == cubic(progress, final)
    assert Polynomial(1)(progress, final) == pytest.approx(linear(progress, final), abs=1e-15)


def test_cosine_and_one_cycle_are_the_published_formulas():
    for t in (0.01, 0.2, 0.5, 0.77, 0.99):
        assert cosine(t, 0.9) == pytest.approx(0.9 * math.sin(math.pi * t / 2) ** 2, rel=1e-14)
        hubens = 0.9 * (1 + math.exp(-14 + 6)) / (1 + math.exp(-14 * t + 6))
        assert OneCycle()(t, 0.9) == pytest.approx(hubens, rel=1e-14)
    assert OneCycle()(1e-9, 0.9) == pytest.approx(0.9 * 0.0025, rel=0.02)  # what the docstring says of its beginning


@given(fractions, st.floats(0.01, 4))
def test_a_window_with_a_start_is_the_published_ramp(t, power):
    """s_f + (s_i − s_f)(1 − (t − t0) / (n Δt))^p, clamped outside (Zhu & Gupta 2017; TFMOT's PolynomialDecay)."""
    ramp, (s_i, s_f) = Window(Polynomial(power), begin=0.2, end=0.7, initial=0.3), (0.3, 0.9)
    inside = min(max((t - 0.2) / (0.7 - 0.2), 0), 1)
    assert ramp(t, s_f) == pytest.approx(s_f + (s_i - s_f) * (1 - inside) ** power, abs=1e-14)


def test_the_plateaus_of_movement_pruning():
    """v_f + (v_i − v_f)(1 − (t − t_i) / (T − t_f − t_i))³ of what remains (Sanh, Wolf, Rush 2020)."""
    schedule, (total, warm_up, cool_down) = resolve("movement"), (100, 10, 20)
    for t in range(total + 1):
        part = 1 - (t - warm_up) / (total - cool_down - warm_up)
        left = 1.0 if t < warm_up else 0.1 if t > total - cool_down else 0.1 + (1 - 0.1) * part**3
        assert 1 - schedule(t / total, 0.9) == pytest.approx(left, abs=1e-14)


def test_what_remains_shrinks_by_one_factor_from_the_start_of_a_window():
    ramp = Window(exponential, initial=0.5)
    left = [1 - ramp(step / 4, 0.9) for step in range(5)]
    assert left[0] == 0.5
    assert [b / a for a, b in itertools.pairwise(left)] == pytest.approx([0.2**0.25] * 4)


@pytest.mark.parametrize("make", [
    lambda: Polynomial(0), lambda: Polynomial(float("inf")), lambda: OneCycle(alpha=0), lambda: OneCycle(beta=math.nan),
    lambda: Window(cubic, 0.5, 0.5), lambda: Window(cubic, -0.1), lambda: Window(cubic, initial=1.0),
    lambda: Window(lambda progress, final: final), lambda: DenseSparseDense(0.5, 0.2), lambda: PerLayer({}),
    lambda: PerLayer({"*": lambda progress, final: 0.0}), lambda: Window(cubic, initial=0.5)(0.1, 0.4),
])  # fmt: skip
def test_nonsense_is_refused(make):
    with pytest.raises(InputError):
        make()


def test_only_what_says_so_may_fall():
    dsd = DenseSparseDense(0.25, 0.75)
    assert [dsd(t, 0.5) for t in (0, 0.25, 0.3, 0.7, 0.75, 1)] == [0, 0, 0.5, 0.5, 0, 0]
    assert dsd.num_steps(0.5) == 2
    assert tried(dsd) is dsd
    assert may_fall(Window(dsd, 0.1, 0.9))
    assert may_fall(PerLayer({"*": dsd, "fc": linear}))
    assert not any(may_fall(schedule) for schedule in ALL)

    def up_and_down(progress, final):
        return final * (1 - abs(2 * progress - 1))

    with pytest.raises(InputError, match="may_fall = True"):
        resolve(up_and_down)
    up_and_down.may_fall = True
    assert resolve(up_and_down) is up_and_down

    def too_high(progress, final):
        return 2 * up_and_down(progress, final)

    too_high.may_fall = True
    with pytest.raises(InputError, match="between 0 and the final fraction"):
        resolve(too_high)


def test_words_take_arguments():
    assert resolve("polynomial:2") == Polynomial(2)
    assert resolve("constant-fraction:0.5") == ConstantFraction(0.5)
    assert resolve("movement:0.2:0.6") == Window(cubic, 0.2, 0.6)
    for wrong in ("cubic:2", "polynomial:two", "polynomial:1:2", "polynomial:0", "movement:0.6:0.2"):
        with pytest.raises(InputError):
            resolve(wrong)


def test_schedules_are_told_apart_without_addresses():
    """A run that is resumed in another process is the same run."""
    for schedule in (resolve("movement"), resolve({"*": "linear"}), OneCycle(), DenseSparseDense()):
        assert " at 0x" not in repr(schedule)
    assert repr(resolve("movement")) != repr(Window(linear, 0.1, 0.8))


def test_a_dict_is_one_schedule_a_layer():
    units = [Units("a.weight", 4, (), "a", "Linear"), Units("b.weight", 4, (), "b", "Conv2d")]
    found = resolve({"a": "linear", "Conv2d": cubic})
    assert found.fractions(0.5, {"a.weight": 0.5, "b.weight": 0.8}, units) == pytest.approx(
        {"a.weight": 0.25, "b.weight": 0.7}
    )
    assert resolve(found) is found
    with pytest.raises(InputError, match="no schedule is called"):
        resolve({"a": "linaer"})


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
    words = {"one-shot": one_shot, "linear": linear, "cubic": cubic, "exponential": exponential, "cosine": cosine}
    assert all(resolve(word) is schedule for word, schedule in words.items())
    assert resolve("constant-fraction") == ConstantFraction(0.2)
    assert resolve("one-cycle") == OneCycle()
    assert resolve("dense-sparse-dense") == DenseSparseDense()
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
