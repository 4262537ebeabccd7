"""Sizes written in Python: integers that remember where they come from, and the calls in which they arrive."""

from __future__ import annotations

import copy
import json
import math
import pickle
import re
from collections import namedtuple
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from topiarist.graph import trace
from topiarist.graph.axis import Axis
from topiarist.graph.sizes import (
    Attribute,
    Size,
    Term,
    atoms_in,
    evaluate,
    expression_of,
    plain,
    sizes_in,
    solve,
    source_line,
)
from topiarist.testing.invariants import check_agreement, cut_axes, half_of_every_axis
from topiarist.testing.zoo import Net


class Notes:
    """An observer that writes down what it is told."""

    def __init__(self):
        self.values, self.equals = [], []

    def on_value(self, expression):
        self.values.append(expression)

    def on_equal(self, left, right):
        self.equals.append((left, right))


A, B = Attribute("a"), Attribute("b")


@pytest.fixture
def notes():
    return Notes()


# --------------------------------------------------------------------------------------------------------- arithmetic


@st.composite
def formulas(draw, depth=3):
    """A formula in ``a`` and ``b`` as Python source, never dividing by zero."""
    if depth == 0 or draw(st.booleans()):
        return draw(st.sampled_from(["a", "b", "3", "16"]))
    left, right = draw(formulas(depth=depth - 1)), draw(formulas(depth=depth - 1))
    symbol = draw(st.sampled_from(["+", "-", "*", "//", "%"]))
    return f"({left} {symbol} ({right} or 1))" if symbol in ("//", "%") else f"({left} {symbol} {right})"


@settings(max_examples=300, deadline=None)
@given(formulas(), st.integers(1, 40), st.integers(1, 40))
def test_arithmetic_is_that_of_integers_and_is_remembered(formula, a, b):
    notes = Notes()
    followed = eval(formula, {"a": Size(a, A, notes), "b": Size(b, B, notes)})  # noqa: S307
    expected = eval(formula, {"a": a, "b": b})  # noqa: S307
    assert plain(followed) == expected
    assert evaluate(expression_of(followed), {"a": a, "b": b}, lambda axis: axis.size) == expected
    assert not notes.values


@settings(max_examples=300, deadline=None)
@given(formulas(), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_solving_is_checked_by_evaluation(formula, a, b, target):
    expression = expression_of(eval(formula, {"a": Size(a, A, Notes()), "b": Size(b, B, Notes())}))  # noqa: S307
    found = solve(expression, target, lambda atom: atom == A, {"b": b}, lambda axis: axis.size)
    if found is not None and "%" not in formula and "//" not in formula:
        assert evaluate(expression, {"a": found, "b": b}, lambda axis: axis.size) == target


@pytest.mark.parametrize(
    ("expression", "target", "expected"),
    [
        (A, 5, 5),
        (Term("*", A, 4), 12, 3),
        (Term("*", A, 4), 13, None),
        (Term("*", 3, Term("+", A, 1)), 15, 4),
        (Term("-", 10, A), 3, 7),
        (Term("-", A, 10), 3, 13),
        (Term("//", A, 3), 4, 12),
        (Term("//", 12, A), 4, 3),
        (Term("//", 12, A), 5, None),
        (Term("*", A, A), 9, None),
        (Term("%", A, 4), 1, None),
        (Term("*", A, B), 12, 6),
        (Term("*", A, Axis(4)), 12, 3),
    ],
)
def test_solving(expression, target, expected):
    assert solve(expression, target, lambda atom: atom == A, {"b": 2}, lambda axis: axis.size) == expected


def test_dividing_by_zero_is_no_size():
    assert evaluate(Term("//", 4, Term("-", A, A)), {"a": 3}, lambda axis: axis.size) == -1


def test_what_enters_an_expression():
    axis = Axis(4)
    expression = Term("+", Term("*", A, axis), Term("-", B, 1))
    assert list(atoms_in(expression)) == [A, axis, B, 1]


def test_a_size_is_the_integer_it_is(notes):
    size = Size(8, A, notes)
    assert isinstance(size, int)
    assert (hash(size), repr(size), f"{size}", json.dumps(size), list(range(size))[-1]) == (hash(8), "8", "8", "8", 7)
    assert type(pickle.loads(pickle.dumps(size))) is int  # noqa: S301
    assert copy.deepcopy(size) is size
    assert size > 7
    assert size <= 8
    assert torch.zeros(size, 2).shape == (8, 2)
    assert not notes.values


@pytest.mark.parametrize(
    "use",
    [
        lambda n: n / 2,
        lambda n: 2 / n,
        lambda n: n**-0.5,
        lambda n: 2**n,
        lambda n: n * 0.5,
        lambda n: n - 0.5,
        lambda n: float(n),
        lambda n: int(n),
        lambda n: round(n),
        lambda n: abs(n),
        lambda n: divmod(n, 3),
        lambda n: n << 1,
        lambda n: n & 3,
        lambda n: math.sqrt(n),
        lambda n: math.floor(n),
        lambda n: np.sqrt(n),
    ],
)
def test_what_loses_the_origin_is_noticed_and_right(use, notes):
    assert use(Size(8, A, notes)) == use(8)
    assert notes.values == [A]


def test_equality_is_noticed_and_inequality_is_not(notes):
    a, b = Size(8, A, notes), Size(8, B, notes)
    assert a == b
    assert not a != b  # noqa: SIM202
    assert a == 8
    assert a != 9
    assert a != "8"
    assert notes.equals == [(A, B), (A, B), (A, 8)]


def test_a_negated_size_is_followed(notes):
    assert -Size(8, A, notes) == -8
    negated = expression_of(-Size(8, A, notes))
    assert (negated.operator, negated.left, negated.right) == ("-", 0, A)


def test_sizes_are_found_in_arguments(notes):
    size = Size(8, A, notes)
    arguments = ((1, size), {"n": [size, slice(None, size)], "s": "text"}, torch.Size([size]))
    assert [found.expression for found in sizes_in(arguments)] == [A] * 4


def test_the_source_line_is_the_models():
    line = source_line()
    assert re.fullmatch(r"tests/test_sizes\.py:\d+", line)


# ------------------------------------------------------------------------------------------- where sizes arrive
# Each entry: the code between two layers of 12 features, attributes it reads, and how many parts of the axis are free.

ARRIVALS = {
    "view": (lambda m, h: h.view(3, m.h, m.d).transpose(1, 2).reshape(3, m.h * m.d), {"h": 3, "d": 4}, 2),
    "view of a tuple": (lambda m, h: h.view((3, m.h, m.d)).flatten(1), {"h": 3, "d": 4}, 2),
    "view of a shape": (lambda m, h: h.view(h.size()[:-1] + (m.h, m.d)).flatten(1), {"h": 3, "d": 4}, 2),  # noqa: RUF005
    "view with a rest": (lambda m, h: h.view(3, -1, m.d).flatten(1), {"d": 4}, 2),
    "view by keyword": (lambda m, h: h.reshape(shape=(3, m.h, m.d)).flatten(1), {"h": 3, "d": 4}, 2),
    "torch.reshape": (lambda m, h: torch.reshape(input=h, shape=(3, m.h, m.d)).flatten(1), {"h": 3, "d": 4}, 2),
    "literal": (lambda m, h: h.view(3, 3, 4).flatten(1), {}, 0),
    "literal beside a rest": (lambda m, h: h.view(3, 3, -1).flatten(1), {}, 1),
    "class attribute": (lambda m, h: h.view(3, type(m).h, -1).flatten(1), {}, 1),
    "unflatten": (lambda m, h: h.unflatten(-1, (m.h, m.d)).flatten(1), {"h": 3, "d": 4}, 2),
    "nn.Unflatten": (lambda m, h: m.layer(h).flatten(1), {"layer": nn.Unflatten(1, (3, 4))}, 2),
    "torch.unflatten": (lambda m, h: torch.unflatten(h, 1, (m.h, -1)).flatten(1), {"h": 3}, 2),
    "split": (lambda m, h: torch.cat(h.split(m.sizes, 1), 1), {"sizes": [4, 8]}, 2),
    "split with sizes": (lambda m, h: torch.cat(h.split_with_sizes([m.n, m.k], -1), 1), {"n": 4, "k": 8}, 2),
    "split in parts of one size": (lambda m, h: torch.cat(torch.split(h, m.n, dim=1)[::-1], 1), {"n": 6}, None),
    "split with a remainder": (lambda m, h: torch.cat(h.split(m.n, 1)[::-1], 1), {"n": 5}, 0),
    "chunk": (lambda m, h: torch.cat(torch.chunk(input=h, chunks=2, dim=1)[::-1], 1), {}, None),
    "narrow": (lambda m, h: torch.cat([h.narrow(1, m.n, m.k), h.narrow(1, 0, m.n)], 1), {"n": 4, "k": 8}, 2),
    "slices": (lambda m, h: torch.cat([h[:, m.n :], h[..., : m.n]], 1), {"n": 4}, 2),
    "slices from the end": (lambda m, h: torch.cat([h[:, -m.n :], h[:, : -m.n]], 1), {"n": 4}, 2),
    "slices at a literal": (lambda m, h: torch.cat([h[:, 4:], h[:, :4]], 1), {}, 1),
    "slices between": (
        lambda m, h: torch.cat([h[:, m.n : m.n + m.k], h[:, : m.n], h[:, m.n + m.k :]], 1), {"n": 3, "k": 4}, 3,
    ),
    "written slices": (lambda m, h: _written(m, h), {"n": 4}, 2),
    "expand": (lambda m, h: h * m.one.expand(3, m.n), {"n": 12, "one": nn.Parameter(torch.ones(1, 1))}, 1),
    "expand_as": (lambda m, h: h * m.one.expand_as(h), {"one": nn.Parameter(torch.ones(1, 1))}, 1),
    "repeat": (lambda m, h: h * m.one.repeat(3, m.n), {"n": 12, "one": nn.Parameter(torch.ones(1, 1))}, 1),
    "repeat of a literal": (lambda m, h: h * m.one.repeat(3, 12), {"one": nn.Parameter(torch.ones(1, 1))}, 0),
    "repeat_interleave": (
        lambda m, h: h.view(3, m.k, m.n)[:, :, 0].repeat_interleave(m.n, 1) + h, {"n": 3, "k": 4}, 1,
    ),
    "zeros": (lambda m, h: h + torch.zeros(3, m.n) + torch.ones((m.n,)), {"n": 12}, 1),
    "zeros of a literal": (lambda m, h: h + torch.zeros(12), {}, 0),
    "new_full": (lambda m, h: h + h.new_full((m.n,), 0.5) + h.new_zeros(3, m.n), {"n": 12}, 1),
    "full": (lambda m, h: h + torch.full((m.n,), 0.5) + torch.full(size=(m.n,), fill_value=0.5), {"n": 12}, 1),
    "zeros of a shape": (lambda m, h: h + torch.zeros(h.shape) + torch.rand(h.size(1)) * 0, {}, 1),
    "zeros_like": (lambda m, h: h + torch.zeros_like(h), {}, 1),
    "randint, which nobody reads": (lambda m, h: h + torch.randint(0, 2, (12,)) * 0, {}, 0),
    "layer norm": (lambda m, h: F.layer_norm(h, (m.n,)), {"n": 12}, 1),
    "layer norm of a literal": (lambda m, h: F.layer_norm(input=h, normalized_shape=(12,)), {}, 0),
    "pad": (lambda m, h: F.pad(h[:, : m.n], (0, m.k)) + h, {"n": 8, "k": 4}, 2),
    "pad by keyword": (lambda m, h: F.pad(input=h[:, m.k :], pad=(m.k, 0)) + h, {"k": 4}, 2),
    "pad of a literal": (lambda m, h: F.pad(h[:, : m.n], (0, 4)) + h, {"n": 8}, 1),
    "a check": (lambda m, h: _checked(h, m.n), {"n": 12}, 1),
    "a check of a literal": (lambda m, h: _checked(h, 12), {}, 0),
    "an assertion on shapes": (lambda m, h: _checked_shape(h, h * 2), {}, 1),
    "a value": (lambda m, h: h * m.n, {"n": 12}, 1),  # n is nobody's size: it stays
    # what is a power of a size, weights make up for
    "a value that is a size": (lambda m, h: h.view(3, m.n) * m.n, {"n": 12}, 1),
    "a value in a function": (lambda m, h: F.leaky_relu(h, h.shape[1]), {}, 0),
    "a value by math": (lambda m, h: h / math.sqrt(h.shape[-1]), {}, 1),
    "a value by numel": (lambda m, h: h / h.numel(), {}, 1),
    "a value by numpy": (lambda m, h: h / float(np.sqrt(h.size(-1))), {}, 1),
    "a maximum": (lambda m, h: h.view(3, max(m.n, 1)), {"n": 12}, 1),
    "arange": (lambda m, h: h * torch.arange(h.shape[1]), {}, 0),
    "a loop": (lambda m, h: torch.cat([h[:, i * m.d : (i + 1) * m.d] for i in range(m.h)], 1), {"h": 3, "d": 4}, None),
    "hidden in hsplit": (lambda m, h: torch.cat(torch.hsplit(h, 2)[::-1], 1), {}, 0),
    "hidden in hsplit, of what a split has divided": (
        lambda m, h: torch.cat(torch.hsplit(torch.cat([t * 2 for t in h.split([m.n, m.k], 1)], 1), 2)[::-1], 1),
        {"n": 4, "k": 8}, 0,
    ),
    "hidden in kron": (lambda m, h: torch.kron(h[:, : m.n], torch.ones(1, 3)), {"n": 4}, None),
    "a count of ones": (lambda m, h: h / torch.ones(h.shape[1]).sum() + h / h.new_ones(3, h.shape[1]).sum(), {}, 1),
    "a matmul of heads": (
        lambda m, h: (h.view(3, m.h, 1, m.d) @ h.view(3, m.h, m.d, 1) * h.view(3, m.h, 1, m.d)).flatten(1),
        {"h": 3, "d": 4}, 2,
    ),
    "hidden in unsafe_chunk": (lambda m, h: torch.cat(torch.unsafe_chunk(h, 2, 1)[::-1], 1), {}, 0),
    "dict": (lambda m, h: h.view(3, m.sizes["h"], m.sizes["d"]).flatten(1), {"sizes": {"h": 3, "d": 4}}, 2),
    "namespace": (lambda m, h: h.view(3, m.c.h, m.c.d).flatten(1), {"c": SimpleNamespace(h=3, d=4)}, 2),
    "named tuple": (lambda m, h: h.view(3, *m.c).flatten(1), {"c": namedtuple("Sizes", "h d")(3, 4)}, 2),
    "nested": (lambda m, h: h.view(3, *m.c["sizes"][0]).flatten(1), {"c": {"sizes": [(3, 4)]}}, 2),
}  # fmt: skip


def _written(m, h):
    h = h.clone()
    h[:, : m.n] = h[:, : m.n] * 2
    return h


def _checked(h, width):
    if h.shape[-1] != width:
        raise ValueError("wrong width")
    return h


def _checked_shape(h, other):
    assert h.shape == other.shape
    return h + other


class Sized(Net):
    h = 3


@pytest.mark.parametrize("name", ARRIVALS)
def test_sizes_arrive(name):
    code, parts, num_free = ARRIVALS[name]
    model = Sized(lambda m, x: m.last(code(m, m.first(x))), first=nn.Linear(5, 12), last=nn.Linear(12, 4), **parts)
    inputs = torch.randn(3, 5)
    axes = trace(model, inputs)
    free = [axis for axis in axes.axes if not axis.pins]
    if num_free is not None:
        assert len(free) == num_free, axes.summary()
    assert not [r for a in axes.axes for r in a.pins if "cannot be read" in r or "does not hold" in r]
    for axis in free:  # one index of each alone, then half of all
        check_agreement(cut_axes(model, axes, {axis.name: torch.arange(axis.size) == 0}).exact(), inputs)
    cut = half_of_every_axis(model, inputs)
    check_agreement(cut.exact(), inputs)
    assert all(type(value) is int for value in cut.plan.attributes.values())


def test_a_literal_is_pinned_with_its_line():
    model = Net(lambda m, x: m.b(m.a(x).view(3, 2, 4).flatten(1)), a=nn.Linear(5, 8), b=nn.Linear(8, 4))
    line = test_a_literal_is_pinned_with_its_line.__code__.co_firstlineno + 1
    text = trace(model, torch.zeros(3, 5)).explain("a.weight")
    assert f"the size 4 is written in the code, at tests/test_sizes.py:{line}" in text
    assert "keep it in a module attribute" in text


def test_a_shared_object_is_copied_where_values_part():
    config = SimpleNamespace(h=3)
    code = lambda m, x: m.layer(x).view(x.shape[0], m.config.h, -1).flatten(1)  # noqa: E731
    one, two = (Net(code, layer=nn.Linear(n, 12), config=config) for n in (5, 12))
    model = nn.Sequential(one, two, nn.Linear(12, 4))
    inputs = torch.randn(3, 5)
    axes = trace(model, inputs)
    heads = next(axis for axis in axes.axes if axis.size == 3 and axis.layer == "0.layer")
    small = cut_axes(model, axes, {heads.name: torch.tensor([True, False, False])}).small
    assert (small[0].config.h, small[1].config.h, config.h) == (2, 3, 3)


def test_an_attribute_of_two_axes_of_different_layers_keeps_both_or_none():
    code = lambda m, x: m.b(m.a(x).view(x.shape[0], m.n)).view(x.shape[0], m.n)  # noqa: E731
    model = nn.Sequential(Net(code, a=nn.Linear(5, 12), b=nn.Linear(12, 12), n=12), nn.Linear(12, 4))
    inputs = torch.randn(3, 5)
    cut = half_of_every_axis(model, inputs)
    check_agreement(cut, inputs)
    assert len({int(gone.sum()) for gone in cut.plan.removed.values()}) <= 1
