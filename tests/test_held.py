"""Tensors in lists, tuples, dicts and objects of a module: leaves like any other, cut with their axis."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import topiarist
from topiarist.errors import InputError
from topiarist.graph.copies import model_tensors
from topiarist.held import held_tensors, put_tensor
from topiarist.plan import Plan, Slice
from topiarist.testing import zoo
from topiarist.testing.invariants import half_of_every_axis, is_caught

NAMES = ["tables[0]", "tables[1][0]", 'cache["again"]', 'cache["mix"]', "kept->shift", 'kept->others["gate"]']


def lookup(model: Any, name: str) -> Tensor:
    """The tensor at a path, by Python itself."""
    found = eval("model." + name.replace("->", "."))  # noqa: S307 of the names above
    assert isinstance(found, Tensor)
    return found


@pytest.fixture
def network() -> tuple[nn.Module, Tensor]:
    return zoo.build("tensors_in_containers")


def test_each_has_a_path(network: tuple[nn.Module, Tensor]) -> None:
    found = {name: tensor for name, tensor, kind in model_tensors(network[0]) if kind == "attribute"}
    assert list(found) == NAMES
    assert all(found[name] is lookup(network[0], name) for name in NAMES)


def test_each_loses_what_its_axis_loses(network: tuple[nn.Module, Tensor]) -> None:
    """Against slices by hand, of the very axis that the layer beside it has lost."""
    model, inputs = network
    cut = half_of_every_axis(model, inputs)
    small, outs, ins = cut.small, torch.arange(10) % 2 == 0, torch.arange(8) % 2 == 0
    kept = {"tables[0]": ins, "tables[1][0]": outs, 'cache["again"]': ins, "kept->shift": ins}
    for name, rows in {**kept, 'kept->others["gate"]': outs}.items():
        assert torch.equal(lookup(small, name), lookup(model, name)[rows])
    assert torch.equal(lookup(small, NAMES[3]), lookup(model, NAMES[3])[outs][:, ins])
    assert lookup(small, NAMES[0]) is lookup(small, NAMES[2])  # one tensor in two places stays one
    assert small.tables[1][1] == 3
    assert [tuple(lookup(model, name).shape) for name in NAMES[:2]] == [(8,), (10,)]


def test_nothing_is_shared_with_the_model(network: tuple[nn.Module, Tensor]) -> None:
    model, inputs = network
    untouched = half_of_every_axis(model, inputs)
    nothing = topiarist.shrink(model, untouched.nothing())
    for name in NAMES:
        lookup(nothing, name).add_(1)
        assert lookup(nothing, name).data_ptr() != lookup(model, name).data_ptr()
    assert torch.equal(untouched.small(inputs), half_of_every_axis(model, inputs).small(inputs))


@pytest.mark.parametrize("name", ["tables[1][0]", 'cache["mix"]', 'kept->others["gate"]'])
def test_a_forgotten_one_is_caught(network: tuple[nn.Module, Tensor], name: str) -> None:
    model, inputs = network
    plan = half_of_every_axis(model, inputs).plan
    assert not is_caught(model, half_of_every_axis(model, inputs).exact().plan, inputs)
    slices = {other: pieces for other, pieces in plan.slices.items() if other != name}
    assert is_caught(model, Plan("channel", plan.removed, slices, plan.attributes), inputs)


def test_a_fresh_instance_gets_those_that_were_cut(network: tuple[nn.Module, Tensor], tmp_path: Any) -> None:
    """They are in no state_dict: the class makes them whole, and the file brings those of another shape."""
    model, inputs = network
    small = half_of_every_axis(model, inputs).small
    topiarist.save(small, tmp_path)
    assert not any("tables" in key or "cache" in key for key in small.state_dict())
    loaded = topiarist.load(tmp_path, build=lambda: zoo.build("tensors_in_containers", seed=3)[0])
    assert torch.equal(loaded(inputs), small(inputs))


def test_a_list_of_parameters_names_nothing_twice() -> None:
    model = nn.Linear(2, 2)
    model.own = [model.weight, torch.ones(1)]
    assert [name for name, _, _ in model_tensors(model)] == ["weight", "bias", "own[1]"]


def test_a_config_that_modules_share_has_one_path() -> None:
    config = SimpleNamespace(table=torch.ones(2))
    model = nn.Sequential(nn.Identity(), nn.Identity())
    model[0].config = model[1].config = config
    assert [name for name, _, _ in model_tensors(model)] == ["0.config->table"]


def test_what_holds_itself_and_names_with_dots() -> None:
    module = nn.Module()
    module.held = {"a.b": torch.ones(1), "a": torch.ones(2)}
    module.held["self"] = module.held
    assert list(held_tensors(module)) == ['held["a"]']


def test_putting_leaves_the_containers_of_others_alone() -> None:
    before = {"a": (torch.ones(1), 2)}
    module = nn.Module()
    module.held = before
    put_tensor(module, 'held["a"][0]', torch.zeros(3))
    assert before["a"][0].tolist() == [1]
    assert module.held["a"][0].tolist() == [0, 0, 0]
    assert module.held["a"][1] == 2


def test_a_plan_of_another_model_is_refused(network: tuple[nn.Module, Tensor]) -> None:
    gone = torch.arange(8) == 1
    plan = Plan("channel", {"last.weight:1": gone}, {"tables[7]": (Slice(0, gone),)})
    before = copy.deepcopy(network[0])
    with pytest.raises(InputError, match=r"tables\[7\]"):
        topiarist.shrink(network[0], plan)
    assert torch.equal(before(network[1]), network[0](network[1]))
