"""One run speaks for both modes only where the mode makes no difference that a trace could tell."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import topiarist
from topiarist.graph import modes
from topiarist.testing import zoo

traces = importlib.import_module("topiarist.graph.run")
knowledge = importlib.import_module("topiarist.graph.trace")  # the name is the function's in the package


class Block(nn.Module):
    """A convolution, and a forward pass of a test's own over what it returns."""

    def __init__(self, code: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.aux, self.norm = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.code = code

    def forward(self, x: Tensor) -> Any:
        return self.code(self, self.conv(x))


class Net(nn.Module):
    def __init__(self, code: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.block, self.last = Block(code), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.block(x)
        return self.last(out[0] if isinstance(out, tuple) else out)


def own_norm(m: Any, h: Tensor) -> Tensor:
    return F.batch_norm(h, m.norm.running_mean, m.norm.running_var, m.norm.weight, m.norm.bias, m.training)


INDIFFERENT: dict[str, Callable[[Any, Tensor], Any]] = {
    "nothing asked": lambda m, h: F.relu(h),
    "torch's norm": lambda m, h: m.norm(h),
    "torch's dropout": lambda m, h: nn.Dropout(0.5).train(m.conv.weight is None)(h),
    "a norm of its own": own_norm,
    "dropout by hand": lambda m, h: F.dropout(h, 0.3, m.training),
    "stochastic depth": lambda m, h: h * h.new_empty(h.shape[0], 1, 1, 1).bernoulli_(0.5) if m.training else h,
    "scaled depth": lambda m, h: h * h.new_empty(h.shape[0], 1, 1, 1).bernoulli_(0.5).div_(0.5) if m.training else h,
}
DIFFERENT: dict[str, Callable[[Any, Tensor], Any]] = {
    "an auxiliary head": lambda m, h: (h, m.aux(h)) if m.training else h,
    "another axis": lambda m, h: m.aux(h) if m.training else h,
    "no zero": lambda m, h: h + 1 if m.training else h,
    "an error": lambda m, h: h.view(7, 7, 7) if m.training else h,
}


def runs(model: nn.Module, inputs: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[list[bool], topiarist.graph.Axes]:
    """The modes in which whole models ran, and the axes."""
    seen: list[bool] = []
    original = traces._run

    def counted(state: Any, model: Any, training: bool, inputs: Any) -> Any:
        seen.append(training)
        return original(state, model, training, inputs)

    with monkeypatch.context() as patch:
        patch.setattr(traces, "_run", counted)
        return seen, topiarist.trace(model, inputs)


def facts(axes: topiarist.graph.Axes) -> list[Any]:
    """All that is known of axes but the words."""
    return [
        (a.name, a.size, [(m.tensor, m.dim) for m in a.members], {p.kind for p in a.pins}, bool(a.inexact), a.step)
        for a in axes.axes
    ]


def in_both(model: nn.Module, inputs: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The same of a trace that runs all of the model in both modes, whatever is asked."""
    with monkeypatch.context() as patch:
        patch.setattr(modes, "_is_plain", lambda module: False)
        seen, axes = runs(model, inputs, monkeypatch)
        assert seen == [False, True]
        return facts(axes)


@pytest.mark.parametrize("name", INDIFFERENT)
def test_one_run_where_the_mode_makes_no_difference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Net(INDIFFERENT[name]), torch.zeros(2, 4, 5, 5)
    seen, axes = runs(model, x, monkeypatch)
    assert seen == [False]
    assert facts(axes) == in_both(model, x, monkeypatch)
    assert "block.conv.weight:0" in axes.free


def test_zeros_along_what_is_pinned_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stochastic depth multiplies examples by what is not zero, and no example is ever cut."""
    dropped = INDIFFERENT["scaled depth"]
    model, x = Net(dropped), torch.zeros(1, 4, 5, 5)
    seen, axes = runs(model, x, monkeypatch)
    assert seen == [False]
    assert facts(axes) == in_both(model, x, monkeypatch)

    def strict(self: Any, left: Any, right: Any, *zeros: bool) -> bool:
        return self.graph.find(left) is self.graph.find(right) and zeros[0] == zeros[1]

    monkeypatch.setattr(traces.Trace, "_are_alike", strict)  # sabotage
    assert runs(model, x, monkeypatch)[0] == [False, True]


@pytest.mark.parametrize("name", DIFFERENT)
def test_two_runs_where_it_does(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Net(DIFFERENT[name]), torch.zeros(2, 4, 5, 5)
    seen, axes = runs(model, x, monkeypatch)
    assert seen == [False, True]
    assert facts(axes) == in_both(model, x, monkeypatch)
    assert (axes.training_error is not None) == (name == "an error")


@pytest.mark.parametrize("name", zoo.ZOO)
def test_the_zoo_is_traced_as_in_both_modes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = zoo.build(name)
    assert facts(topiarist.trace(model, inputs)) == in_both(model, inputs, monkeypatch)


def test_an_answer_that_is_taken_for_none_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sabotage: whatever a module returns in training mode is held to be alike."""
    model, x = Net(DIFFERENT["another axis"]), torch.zeros(2, 4, 5, 5)
    monkeypatch.setattr(traces.Trace, "alike", lambda self, before, after: True)
    monkeypatch.setattr(modes, "_INDIFFERENT", {Block.forward.__code__, DIFFERENT["another axis"].__code__})
    assert facts(topiarist.trace(model, x)) != in_both(model, x, monkeypatch)


class Step(nn.Module):
    """A norm that asks for the mode, and what else a test has it do in training mode, if it is ``told`` to."""

    def __init__(self, code: Callable[[Any, Tensor], Tensor], told: bool, width: int = 6) -> None:
        super().__init__()
        self.norm, self.aux, self.code, self.told = nn.BatchNorm2d(width), nn.Conv2d(width, width, 1), code, told

    def forward(self, h: Tensor) -> Tensor:
        h = own_norm(self, h)
        return self.code(self, h) if self.training and self.told else h


def steps(code: Callable[[Any, Tensor], Tensor], *told: bool) -> nn.Module:
    """Each after a convolution of its own."""
    parts = [part for each in told for part in (nn.Conv2d(6, 6, 1), Step(code, each))]
    return nn.Sequential(nn.Conv2d(4, 6, 1), *parts, nn.Conv2d(6, 3, 1))


def turned(m: Any, h: Tensor) -> Tensor:
    """What it returns is the like, and still the channels are pinned for their order."""
    h.flip(1)
    return h


def num_compared(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> tuple[int, list[Any]]:
    """How many modules ran in both modes, and what is known of the axes."""
    names: list[Any] = []
    original = traces.Trace.alike

    def alike(self: Any, before: Any, after: Any) -> bool:
        names.append(self)
        return bool(original(self, before, after))

    with monkeypatch.context() as patch:
        patch.setattr(traces.Trace, "alike", alike)
        found = facts(topiarist.trace(model, torch.zeros(2, 4, 5, 5)))
    return len(names), found


def test_of_one_kind_one_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    model = steps(turned, False, False, False)
    assert num_compared(model, monkeypatch) == (1, in_both(model, torch.zeros(2, 4, 5, 5), monkeypatch))


def test_what_teaches_something_is_no_example_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    model = steps(turned, True, True, True)
    assert num_compared(model, monkeypatch) == (3, in_both(model, torch.zeros(2, 4, 5, 5), monkeypatch))


def test_another_attribute_is_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = steps(turned, False, False, True), torch.zeros(2, 4, 5, 5)
    expected = in_both(model, x, monkeypatch)
    assert num_compared(model, monkeypatch) == (2, expected)
    monkeypatch.setattr(knowledge, "kind_of", lambda module: type(module))  # sabotage: a class is a kind
    assert num_compared(model, monkeypatch)[1] != expected


def test_a_model_that_asks_at_the_top_or_has_its_own_way_to_train_runs_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    class Frozen(nn.BatchNorm2d):
        def train(self, mode: bool = True) -> Any:
            return super().train(False)

    own = nn.Sequential(nn.Conv2d(4, 6, 1), Frozen(6), nn.Conv2d(6, 3, 1))
    top = Block(INDIFFERENT["dropout by hand"])
    for model in (own, top):
        assert runs(model, torch.zeros(2, 4, 5, 5), monkeypatch)[0] == [False, True]


def test_one_value_a_channel_is_refused_in_training_mode_alone() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 3, 1))
    axes = topiarist.trace(model, torch.zeros(1, 4, 1, 1))
    assert "Expected more than 1 value per channel" in str(axes.training_error)


def test_modules_hold_their_mode_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net(own_norm).train()
    model.block.eval()
    before = [m.training for m in model.modules()]
    topiarist.trace(model, torch.zeros(2, 4, 5, 5))
    assert [m.training for m in model.modules()] == before
    assert not hasattr(nn.Module, "training")
    assert not modes._WATCHED
