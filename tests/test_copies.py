"""A structural copy is what `copy.deepcopy` makes, on other tensors."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from topiarist.graph.copies import UncopiedError, model_tensors, structural_copy
from topiarist.testing import zoo


def described(value: Any, seen: dict[int, int] | None = None) -> Any:
    """Everything an object holds, with tensors by their values and what is shared by where it was first."""
    seen = {} if seen is None else seen
    if isinstance(value, (type(None), bool, int, float, str, type)):
        return value
    if callable(value) and not isinstance(value, nn.Module):  # functions, and references to what is elsewhere too
        return getattr(value, "__qualname__", type(value).__name__)
    if id(value) in seen:
        return ("seen", seen[id(value)])
    seen[id(value)] = len(seen)
    if isinstance(value, Tensor):
        return (type(value).__name__, tuple(value.shape), value.requires_grad, value.detach().flatten().tolist())
    if isinstance(value, dict):
        return (type(value).__name__, [(described(k, seen), described(v, seen)) for k, v in value.items()])
    if isinstance(value, (list, tuple)):
        return (type(value).__name__, [described(item, seen) for item in value])
    if isinstance(value, nn.Module):
        return (type(value).__name__, described(value.__dict__, seen))
    return type(value).__name__


@pytest.mark.parametrize("name", list(zoo.ZOO))
def test_it_holds_what_a_deep_copy_holds(name: str) -> None:
    model, _ = zoo.build(name)
    found = structural_copy(model)
    assert described(found) == described(copy.deepcopy(model))
    assert not {id(m) for m in found.modules()} & {id(m) for m in model.modules()}
    assert [id(t) for _, t, _ in model_tensors(found)] == [id(t) for _, t, _ in model_tensors(model)]


def test_a_shallow_copy_is_noticed() -> None:
    model, _ = zoo.build("mlp")
    shallow = copy.copy(model)
    assert {id(m) for m in shallow.modules()} & {id(m) for m in model.modules()}


def test_tensors_are_those_given() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 2))
    given = {id(p): nn.Parameter(torch.zeros_like(p)) for p in net.parameters()}
    found = structural_copy(net, given)
    assert [id(p) for p in found.parameters()] == [id(given[id(p)]) for p in net.parameters()]
    assert all(a is b for a, b in zip(found[1]._flat_weights, found[1].parameters(), strict=True))


def test_what_cannot_be_copied_is_told() -> None:
    net = nn.Linear(2, 2)
    net.lock = threading.Lock()
    with pytest.raises(UncopiedError, match="cannot be copied"):
        structural_copy(net)
    with pytest.raises(UncopiedError, match="cannot be copied"):
        structural_copy(nn.Sequential(net))


def test_a_state_of_its_own_is_asked_for() -> None:
    class Own(nn.Module):
        def __getstate__(self) -> dict[str, Any]:
            return {**self.__dict__, "told": True}

        def __setstate__(self, state: dict[str, Any]) -> None:
            self.__dict__.update(state, set=True)

    found = structural_copy(nn.Sequential(Own()))
    assert found[0].told
    assert found[0].set


def test_names_of_tensors_are_those_of_torch() -> None:
    model, _ = zoo.build("tied_embedding")
    names = [(name, kind) for name, _, kind in model_tensors(model) if kind != "attribute"]
    expected = [(name, "parameter") for name, _ in model.named_parameters(remove_duplicate=False)]
    assert names == expected + [(name, "buffer") for name, _ in model.named_buffers(remove_duplicate=False)]


def test_tensors_in_containers_are_copied() -> None:
    net = nn.Linear(2, 2)
    net.held = {"table": torch.ones(3), "empty": torch.ones(0), "list": [torch.zeros(2)]}
    assert described(structural_copy(net)) == described(copy.deepcopy(net))
