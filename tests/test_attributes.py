"""The integers a model keeps in Python: found by path, read, replaced without touching whoever shares them."""

from __future__ import annotations

import copy
import enum
import random
from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from topiarist.errors import InputError
from topiarist.graph import attributes

Sizes = namedtuple("Sizes", "rows columns")


@dataclass(frozen=True)
class Frozen:
    width: int = 5


@dataclass(frozen=True, slots=True)
class Slotted:
    width: int = 6


class Config:
    def __init__(self) -> None:
        self.hidden_size = 12
        self.deep = SimpleNamespace(depth=2)
        self.dropout = 0.1
        self.flag = True


class Kind(enum.IntEnum):
    ONE = 1


class Layer(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm = nn.LayerNorm((2, 3))
        self.config = config
        self.num_heads = 4
        self.table = {"a.b": 7, 3: 8, 'no"[quote]': 9, True: 1}
        self.sizes = Sizes(10, 11)
        self.shape = torch.Size([13, 14])
        self.items = [Frozen(), Slotted(), (15, [16])]
        self.kind = Kind.ONE
        self.random = random.Random(0)  # noqa: S311 - a stand-in for state of the standard library
        self.generator = torch.Generator()
        self.factory = nn.Linear
        self.back = SimpleNamespace(module=self.norm)
        self.many = list(range(5000))
        self._private = 17
        self.__dict__["__dunder"] = 18
        self.handle = self.norm.register_forward_hook(lambda *_: None)


@pytest.fixture
def model() -> nn.Module:
    config = Config()
    return nn.Sequential(Layer(config), Layer(config))


EXPECTED = {
    "config->hidden_size": 12,
    "config->deep->depth": 2,
    "num_heads": 4,
    'table["a.b"]': 7,
    "table[3]": 8,
    "sizes[0]": 10,
    "sizes[1]": 11,
    "shape[0]": 13,
    "shape[1]": 14,
    "items[0]->width": 5,
    "items[1]->width": 6,
    "items[2][0]": 15,
    "items[2][1][0]": 16,
    "_private": 17,
}


def test_finds_exactly_the_integers_that_can_be_set(model: nn.Module) -> None:
    norm = {"norm.normalized_shape[0]": 2, "norm.normalized_shape[1]": 3}
    expected = {f"{i}.{path}": value for i in (0, 1) for path, value in {**EXPECTED, **norm}.items()}
    assert attributes.integer_attributes(model) == expected


@pytest.mark.parametrize("path", [*EXPECTED, "norm.normalized_shape[1]"])
def test_set_changes_one_path_of_one_module_and_nothing_else(model: nn.Module, path: str) -> None:
    before = attributes.integer_attributes(model)
    attributes.set(model, f"1.{path}", 99)
    assert attributes.get(model, f"1.{path}") == 99
    assert attributes.integer_attributes(model) == {**before, f"1.{path}": 99}


def test_set_keeps_the_types_of_what_it_rebuilds(model: nn.Module) -> None:
    for path in EXPECTED:
        attributes.set(model, f"0.{path}", 1)
    layer = model[0]
    types = [type(layer.sizes), type(layer.shape), type(layer.items[0]), type(layer.items[1]), type(layer.config)]
    assert types == [Sizes, torch.Size, Frozen, Slotted, Config]
    assert layer.config.dropout == 0.1


def test_set_does_not_touch_a_config_that_others_hold() -> None:
    config = Config()
    model = nn.Sequential(Layer(config), Layer(config))
    attributes.set(model, "0.config->hidden_size", 6)
    attributes.set(model, "0.config->deep->depth", 1)
    assert (config.hidden_size, config.deep.depth) == (12, 2)
    assert model[1].config is config
    assert (model[0].config.hidden_size, model[0].config.deep.depth) == (6, 1)


def test_the_check_on_sharing_catches_an_in_place_set() -> None:
    config = Config()
    model = nn.Sequential(Layer(config), Layer(config))
    model[0].config.hidden_size = 6  # the sabotaged twin: what set would do without copying
    assert config.hidden_size != 12
    assert attributes.get(model, "1.config->hidden_size") != 12


def test_replaced_puts_the_very_objects_back_even_after_an_error(model: nn.Module) -> None:
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}

    class Tracked(int):
        pass

    def fails() -> None:
        with attributes.replaced(model, lambda path, value: Tracked(value)):
            assert all(type(v) is Tracked for v in attributes.integer_attributes(model).values())
            assert isinstance(model[0].config.hidden_size, Tracked)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fails()
    for name, module in model.named_modules():
        assert all(module.__dict__[key] is value for key, value in before[name].items())


@pytest.mark.parametrize(
    "path",
    ["__class__", "0.__class__", "0.config->__class__", "0.config->__dict__", "0.__dict__[\"num_heads\"]", "training",
     "0._parameters", "0._modules[\"norm\"]", "0.num_head", "7.num_heads", "0.items[9]", "0.items[0]->size", "", ".",
     "0.config", "0.config->dropout", "0.config->flag", "0.kind", "0.norm->eps", "0.items[0", "0.config.hidden_size"],
)  # fmt: skip
def test_any_other_path_is_refused_and_changes_nothing(model: nn.Module, path: str) -> None:
    before = attributes.integer_attributes(model)
    with pytest.raises(InputError):
        attributes.get(model, path)
    with pytest.raises(InputError):
        attributes.set(model, path, 1)
    assert attributes.integer_attributes(model) == before


@pytest.mark.parametrize("value", [True, 1.0, "1", None, Kind.ONE])
def test_only_integers_can_be_set(model: nn.Module, value: object) -> None:
    with pytest.raises(InputError, match="takes an integer"):
        attributes.set(model, "0.num_heads", value)  # type: ignore[arg-type]


def test_the_error_names_the_nearest_path(model: nn.Module) -> None:
    with pytest.raises(InputError, match=r"nearest: 0\.num_heads"):
        attributes.get(model, "0.num_head")


def test_module_names_with_brackets_and_arrows_have_unambiguous_paths() -> None:
    model = nn.ModuleDict({"a->b": nn.LayerNorm(2), 'x[0]["k"]': nn.LayerNorm(3), "y z": nn.Linear(4, 5)})
    found = attributes.integer_attributes(model)
    assert found == {
        "a->b.normalized_shape[0]": 2,
        'x[0]["k"].normalized_shape[0]': 3,
        "y z.in_features": 4,
        "y z.out_features": 5,
    }
    assert {path: attributes.get(model, path) for path in found} == found


def test_a_holder_that_holds_itself_ends_the_walk() -> None:
    model = nn.Identity()
    model.loop = [3]  # type: ignore[assignment]
    model.loop.append(model.loop)  # type: ignore[arg-type, operator, union-attr]
    assert attributes.integer_attributes(model) == {"loop[0]": 3}


def test_the_model_can_still_be_copied(model: nn.Module) -> None:
    attributes.set(model, "0.config->hidden_size", 6)
    copied = copy.deepcopy(model)
    assert attributes.integer_attributes(copied) == attributes.integer_attributes(model)


def test_update_shares_what_is_the_same_and_parts_what_is_not() -> None:
    config = Config()
    model = nn.Sequential(Layer(config), Layer(config), Layer(config))
    attributes.update(model, {"0.config->hidden_size": 6, "1.config->hidden_size": 6, "2.config->hidden_size": 9})
    assert model[0].config is model[1].config
    assert [layer.config.hidden_size for layer in model] == [6, 6, 9]
    assert (config.hidden_size, model[2].config.deep is config.deep) == (12, True)


def test_update_keeps_parts_shared_below_what_differs() -> None:
    config = Config()
    model = nn.Sequential(Layer(config), nn.Identity())
    model[1].deep = config.deep
    attributes.update(model, {"0.config->deep->depth": 1, "1.deep->depth": 1})
    assert model[0].config.deep is model[1].deep
    assert model[1].deep.depth == 1


def test_update_changes_nothing_where_one_path_is_wrong(model: nn.Module) -> None:
    before = attributes.integer_attributes(model)
    with pytest.raises(InputError):
        attributes.update(model, {"0.num_heads": 2, "1.num_head": 2})
    assert attributes.integer_attributes(model) == before
