"""Rounding to what hardware computes in: multiples of every axis that is cut, ties and budgets held, by device."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import topiarist
from topiarist import Budget
from topiarist.errors import BudgetError, InputError
from topiarist.graph import Axes, trace
from topiarist.plan import Plan
from topiarist.planning import Planner
from topiarist.structure import Channel, resolve
from topiarist.structure.rounding import multiple, multiple_for
from topiarist.structure.step import by_axis
from topiarist.testing.zoo import Net

# ------------------------------------------------------------------------------------------------ networks of all ties


def chain(draw: Any) -> tuple[nn.Module, Tensor]:
    """Layers of any widths, one after the other."""
    widths = draw(st.lists(st.integers(1, 40), min_size=2, max_size=4))
    sizes = [5, *widths, 3]
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1]), torch.zeros(1, 5)


def joined(draw: Any) -> tuple[nn.Module, Tensor]:
    """A residual sum beside a concatenation: tied axes, and sums of axes."""
    a, b = draw(st.integers(1, 40)), draw(st.integers(1, 40))

    def forward(m: Any, x: Tensor) -> Any:
        x = m.stem(x)
        x = x + m.second(torch.relu(m.first(x)))
        return m.head(torch.cat([x, torch.relu(m.beside(x))], -1))

    parts = {"stem": nn.Linear(5, a), "first": nn.Linear(a, b), "second": nn.Linear(b, a), "beside": nn.Linear(a, b)}
    return Net(forward, **parts, head=nn.Linear(a + b, 3)), torch.zeros(1, 5)


def grouped(draw: Any) -> tuple[nn.Module, Tensor]:
    """A grouped convolution: the channels of every group go together."""
    groups, a, b = draw(st.integers(1, 4)), draw(st.integers(1, 20)), draw(st.integers(1, 20))
    layers = [nn.Conv1d(3, groups * a, 1), nn.ReLU(), nn.Conv1d(groups * a, groups * b, 1, groups=groups)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Conv1d(groups * b, 3, 1)), torch.zeros(1, 3, 4)


def stepped(draw: Any) -> tuple[nn.Module, Tensor]:
    """Attention whose heads are cut from the stream: heads and channels shrink only together."""
    heads, dim = draw(st.integers(2, 6)), draw(st.sampled_from([2, 3, 4, 8]))

    def forward(m: Any, x: Tensor) -> Any:
        x = m.stem(x)
        b, n, c = x.shape
        q, k, v = (layer(x).reshape(b, n, m.heads, c // m.heads).transpose(1, 2) for layer in (m.q, m.k, m.v))
        mixed = (q @ k.transpose(-2, -1) * (c // m.heads) ** -0.5).softmax(-1) @ v
        return m.head(x + m.out(mixed.transpose(1, 2).reshape(b, n, c)))

    parts = {name: nn.Linear(heads * dim, heads * dim) for name in ("q", "k", "v", "out")}
    model = Net(forward, stem=nn.Linear(5, heads * dim), **parts, head=nn.Linear(heads * dim, 3), heads=heads)
    return model, torch.zeros(1, 2, 5)


def wrong_sizes(plan: Plan, axes: Axes, to: int) -> list[str]:
    """Axes that lost something and do not keep a multiple of their step and of ``to``, or keep nothing."""
    wrong = []
    for name, gone in plan.removed.items():
        axis, kept = axes[name], int((~gone).sum())
        multiple_of = math.lcm(1 if axis.is_head else to, dict(axis.step).get(name, 1))
        if (bool(gone.any()) and kept % multiple_of) or kept < 1:
            wrong.append(f"{name} keeps {kept} of {axis.size}, not a multiple of {multiple_of}")
    return wrong


BUDGETS = st.sampled_from(["params", "macs", "bytes"])
SALIENCIES = ["l2", "random", lambda slices: -slices.weights[0].square().sum(1)]  # a function may be negative


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_multiples_stay_and_budgets_are_met_or_refused(data: Any) -> None:
    make = data.draw(st.sampled_from([chain, joined, grouped, stepped]))
    torch.manual_seed(data.draw(st.integers(0, 3)))
    model, inputs = make(data.draw)
    to, unit, value = data.draw(st.integers(2, 10)), data.draw(BUDGETS), data.draw(st.floats(0.1, 1.0))
    options: dict[str, Any] = {
        "saliency": data.draw(st.sampled_from(SALIENCIES)),
        "allocation": data.draw(st.sampled_from(["global", "uniform"])),
        "budget": Budget(**{unit: value}),
        "structure": "channel",
    }
    axes = trace(model, inputs)
    try:
        plan = topiarist.plan(model, inputs, round_to=to, **options)
    except (BudgetError, InputError) as error:
        said = (f"asked for {unit}={value:g}, nearest is", "try a smaller one", "has no channel that may go")
        event(type(error).__name__)
        assert any(words in str(error) for words in said)  # noqa: PT017 most draws can be met
        return
    event("met")
    assert wrong_sizes(plan, axes, to) == []
    assert plan.achieved[unit] <= value + 1e-9
    small = topiarist.shrink(model, plan, inputs)
    params = [sum(p.numel() for p in m.parameters()) for m in (small, model)]
    assert plan.achieved["params"] == params[0] / params[1]
    assert topiarist.verify(model, small, plan, inputs).passed


def test_the_check_of_multiples_finds_what_is_not_rounded() -> None:
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(5, 20), nn.ReLU(), nn.Linear(20, 3)), torch.zeros(1, 5)
    plan = topiarist.plan(model, inputs, structure="channel", budget=Budget(params=0.95))
    assert wrong_sizes(plan, trace(model, inputs), 8)


def test_heads_and_their_channels_keep_a_multiple_together() -> None:
    """Six heads of 4 channels: to leave a multiple of 8, two heads go at once."""

    class Sure:
        def draw(self, strategy: Any) -> Any:
            return next(self.values)

        values: Iterator[int] = iter([6, 4])

    model, inputs = stepped(Sure().draw)
    axes = trace(model, inputs)
    (units,) = Planner(model, axes, Channel(round_to=8)).units
    assert (units.num, dict(units.step)["stem.weight:0"], sum(n for n in dict(units.step).values())) == (3, 8, 8 + 2)
    for num_gone in range(units.num):
        removed = by_axis([units], {units.name: torch.arange(units.num) < num_gone}, axes)
        assert {axes[n].is_head: int((~gone).sum()) for n, gone in removed.items()} == {
            True: 6 - 2 * num_gone,
            False: 24 - 8 * num_gone,
        }


@pytest.mark.parametrize("to", [8, 5])
def test_negative_scores_keep_the_order_of_units(to: int) -> None:
    """Four channels go before eight whose sum is lower: else no multiple would stay."""
    torch.manual_seed(0)
    model, inputs = nn.Sequential(nn.Linear(5, 20), nn.ReLU(), nn.Linear(20, 3)), torch.zeros(1, 5)
    options: dict[str, Any] = {"structure": "channel", "round_to": to, "saliency": SALIENCIES[2]}
    plan = topiarist.plan(model, inputs, **options, budget=Budget(params=0.9))
    assert wrong_sizes(plan, trace(model, inputs), to) == []


def test_nothing_to_round_to_says_the_sizes() -> None:
    model = nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, 3))
    with pytest.raises(InputError, match=r"no cut leaves a multiple of round_to=16 channels \(0\.weight:0: 12\)"):
        topiarist.plan(model, torch.zeros(1, 5), structure="channel", round_to=16, budget=Budget(params=0.5))


@pytest.mark.parametrize("to", [0, -8, 2.5, True, "eight"])
def test_only_whole_numbers_round(to: Any) -> None:
    with pytest.raises(InputError, match="whole number"):
        Channel(round_to=to)


# ----------------------------------------------------------------------------------------------------------- by device


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float64, 2), (torch.float32, 4), (torch.float16, 8), (torch.bfloat16, 8), (torch.int8, 16)],
)
def test_the_multiple_of_tensor_cores_is_sixteen_bytes(dtype: torch.dtype, expected: int) -> None:
    assert multiple(torch.device("cuda:1"), dtype) == expected


def test_auto_goes_by_the_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 40), nn.ReLU(), nn.Linear(40, 3))
    assert resolve("channel", "auto", model) == Channel(8)
    plan = topiarist.plan(model, torch.zeros(1, 5), structure="channel", round_to="auto", budget=Budget(params=0.7))
    assert wrong_sizes(plan, trace(model, torch.zeros(1, 5)), multiple_for(model)) == []


def test_auto_without_a_device_to_go_by_is_refused() -> None:
    with pytest.raises(InputError, match="knows cpu, cuda and mps, the model lies on meta"):
        multiple_for(nn.Linear(5, 3, device="meta"))
    with pytest.raises(InputError, match="the model has none"):
        multiple_for(nn.ReLU())
    with pytest.raises(InputError, match="pass the model"):
        resolve("channel", "auto")
