"""Functions that come down to one operator: the operator returns what the function does, and the axes are the same."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import topiarist
from topiarist.graph import straight
from topiarist.graph.straight import STRAIGHT, straight_call

aten = torch.ops.aten
traces = importlib.import_module("topiarist.graph.run")


def images(*shape: int) -> Tensor:
    return torch.randn(*(shape or (2, 4, 5, 5)), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def norm(first: str) -> tuple[Tensor, ...]:
    """Scale, shift, mean and variance of four channels, the parameters or the statistics first."""
    scale, shift, mean, var = images(4), images(4) + 1, images(4) - 1, images(4).abs() + 0.5
    return (scale, shift, mean, var) if first == "parameters" else (mean, var, scale, shift)


# How each kind of function is called; the rest take one tensor or two.
CALLS: dict[Any, list[tuple[tuple[Any, ...], dict[str, Any]]]] = {
    torch.conv2d: [
        ((images(), images(6, 4, 3, 3)), {}),
        ((images(), images(6, 2, 3, 3), images(6), (2, 1), (1, 0), (1, 2), 2), {}),
        ((images(), images(6, 4, 1, 1)), {"stride": [2], "padding": 1}),
    ],
    torch.batch_norm: [((images(), *norm("parameters"), False, 0.1, 1e-5, True), {})],
    F.batch_norm: [((images(), *norm("statistics")), {"eps": 1e-3}), ((images(), *norm("statistics")[:2]), {})],
    **{getattr(F, name): [((images(),), {}), ((images(), True), {})] for name in ("relu", "silu", "hardswish")},
}
PAIRS = {getattr(room, name) for room in (torch, torch.Tensor) for name in ("add", "mul")}


def calls_of(function: Any) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    if function in PAIRS:
        return [((images(), images()), {}), ((images(), images(2, 4, 1, 1)), {})]
    return CALLS.get(function, [((images(),), {})])


def fresh(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(a.clone() if isinstance(a, Tensor) else a for a in args)


def disagreements() -> list[str]:
    """The functions whose operator returns something else, or leaves something else in its first operand."""
    found = []
    for function in STRAIGHT:
        for args, kwargs in calls_of(function):
            ours, theirs = fresh(args), fresh(args)
            call = straight_call(function, ours, kwargs)
            assert call is not None
            out = call[0](*call[1])
            expected = function(*theirs, **kwargs)
            same = torch.equal(out if isinstance(out, Tensor) else out[0], expected)
            if not same or not torch.equal(ours[0], theirs[0]):
                found.append(function.__name__)
    return found


def test_operators_return_what_functions_do() -> None:
    assert disagreements() == []


@pytest.mark.parametrize(
    ("function", "wrong"),
    [
        (torch.relu, lambda x: (aten.sigmoid.default, (x,))),
        (F.silu, lambda x, inplace=False: (aten.silu.default, (x,))),  # never in place
        (torch.conv2d, lambda x, w, b=None, s=1, p=0, d=1, g=1: straight._conv2d(x, w, b, s, d, p, g)),
    ],
)
def test_a_wrong_operator_is_seen(function: Any, wrong: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STRAIGHT, function, wrong)
    try:
        found = disagreements()
    except RuntimeError:  # shapes that do not fit
        return
    assert found


@pytest.mark.parametrize(
    ("function", "args", "kwargs"),
    [
        (torch.conv2d, (images(4, 5, 5), images(6, 4, 3, 3)), {}),  # without a batch
        (torch.conv2d, (images(), images(6, 4, 3, 3)), {"padding": "same"}),
        (F.batch_norm, (images(), *norm("statistics"), True), {}),
        (torch.add, (images(), images()), {"alpha": 2}),
        (torch.relu, (), {}),
        (torch.mul, (images(), 2), {}),
        (torch.nn.functional.gelu, (images(),), {"approximate": "tanh"}),
    ],
)
def test_calls_that_go_another_way_are_left_to_torch(function: Any, args: Any, kwargs: Any) -> None:
    assert straight_call(function, args, kwargs) is None


class Net(nn.Module):
    """Everything that goes straight, with a residual, a depthwise convolution and a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.point = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)
        self.gate, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)), inplace=True)
        y = F.hardswish(self.point(F.silu(self.depthwise(x))))
        y = y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))
        return self.head(F.gelu((x + y).tanh().mean((2, 3))))


def described(monkeypatch: pytest.MonkeyPatch, is_straight: bool) -> tuple[Any, ...]:
    with monkeypatch.context() as patch:
        if not is_straight:
            patch.setattr(traces, "straight_call", lambda *_: None)
        axes = topiarist.trace(Net(), images(2, 3, 6, 6).float())
    infos = [(a.name, a.size, [str(p) for p in a.pins], [str(r) for r in a.inexact], len(a.members)) for a in axes.axes]
    return infos, axes.num_macs(), sorted(axes.scales), axes.biases, axes.integers


def test_axes_are_the_same_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    assert described(monkeypatch, True) == described(monkeypatch, False)
    monkeypatch.setitem(STRAIGHT, torch.conv2d, lambda x, *_: (aten.relu_.default, (x,)))  # sabotage: weights go unseen
    assert described(monkeypatch, True) != described(monkeypatch, False)
