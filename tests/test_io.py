"""Models on disk: bit-exact round trips, damaged and foreign files refused, old saves never lost, nothing executed."""

from __future__ import annotations

import copy
import importlib
import json
import os
import pickle
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import topiarist
from topiarist import models
from topiarist.errors import FormatError, InputError
from topiarist.graph.attributes import integer_attributes
from topiarist.io import format as layout
from topiarist.io import load, load_plan, save
from topiarist.mask.attach import active_plan, mask, unmask
from topiarist.plan import Plan


class Net(nn.Module):
    """Tied weights, buffers of every kind, odd dtypes, 0-d and empty tensors, a size written in Python."""

    def __init__(self, width: int = 8, heads: int = 4) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, width)
        self.norm = nn.LayerNorm(width)
        self.bn = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 10, bias=False)
        self.head.weight = self.embed.weight
        self.low = nn.Parameter(torch.randn(width).to(torch.bfloat16))
        self.scalar = nn.Parameter(torch.tensor(2.0))
        self.nothing = nn.Parameter(torch.zeros(0, 3))
        self.frozen = nn.Parameter(torch.arange(3), requires_grad=False)
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("cache", torch.arange(width, dtype=torch.float32), persistent=False)
        self.table = torch.arange(width)
        self.num_heads = heads

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.embed(x)) + self.cache
        y = y.reshape(len(x), self.num_heads, -1).flatten(1) * self.low.float() * self.scalar
        return self.head(self.bn(y)[:, self.table])


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def all_tensors(model: nn.Module) -> dict[str, Tensor]:
    named = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    plain = {f"{n}.{k}": v for n, m in model.named_modules() for k, v in m.__dict__.items() if isinstance(v, Tensor)}
    return {**named, **plain}


def assert_same(one: nn.Module, two: nn.Module) -> None:
    a, b = all_tensors(one), all_tensors(two)
    assert list(a) == list(b)
    for name in a:
        assert (a[name].dtype, a[name].shape, a[name].requires_grad) == (
            b[name].dtype,
            b[name].shape,
            b[name].requires_grad,
        ), name
        assert bits(a[name]) == bits(b[name]), name
    assert integer_attributes(one) == integer_attributes(two)


def shrink_by_hand(model: Net) -> Net:
    """Half the width and heads, cut with plain indexing: no plan, no library."""
    keep = torch.arange(0, 8, 2)
    model.embed.weight = model.head.weight = nn.Parameter(model.embed.weight.detach()[:, keep].clone())
    model.low = nn.Parameter(model.low.detach()[keep])
    for layer in (model.norm, model.bn):
        layer.weight = nn.Parameter(layer.weight.detach()[keep])
        layer.bias = nn.Parameter(layer.bias.detach()[keep])
    model.bn.running_mean, model.bn.running_var = model.bn.running_mean[keep], model.bn.running_var[keep]
    model.cache, model.table = model.cache[keep], torch.arange(4)
    model.norm.normalized_shape, model.num_heads = (4,), 2
    model.embed.embedding_dim = model.bn.num_features = model.head.in_features = 4
    return model


@pytest.mark.parametrize("prepare", [lambda m: m, shrink_by_hand], ids=["dense", "shrunk"])
def test_round_trip_is_bit_exact_and_changes_nothing(tmp_path: Path, prepare: Callable[[Net], Net]) -> None:
    torch.manual_seed(0)
    model = prepare(Net())
    before = copy.deepcopy(model)
    save(model, tmp_path / "out")
    assert_same(model, before)
    loaded = load(tmp_path / "out", build=Net)
    assert type(loaded) is Net
    assert_same(model, loaded)
    assert loaded.head.weight is loaded.embed.weight
    x = torch.randint(10, (6,))
    assert torch.equal(model.eval()(x), loaded.eval()(x))


@pytest.mark.parametrize("name", ["resnet20", "vit"])
def test_what_shrink_makes_comes_back(tmp_path: Path, name: str) -> None:
    model, x = models.build(name), torch.randn(2, 3, 32, 32)
    plan = topiarist.plan(model, x, structure="channel", budget=topiarist.Budget(macs=0.5))
    small = topiarist.shrink(model, plan, x)
    loaded = load(save(small, tmp_path, plan=plan), build=lambda: models.build(name))
    assert_same(small, loaded)
    assert torch.equal(small.eval()(x), loaded.eval()(x))
    assert load_plan(tmp_path) == plan
    assert integer_attributes(loaded) != integer_attributes(model)


@pytest.mark.parametrize("sabotaged", [False, True])
def test_channels_last_stay_last_where_the_class_makes_them_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sabotaged: bool
) -> None:
    if sabotaged:
        monkeypatch.setattr(importlib.import_module("topiarist.io.load"), "laid_out", lambda tensor, like: tensor)
    model, x = models.build("resnet20").to(memory_format=torch.channels_last), torch.randn(2, 3, 32, 32)
    small = topiarist.shrink(model, topiarist.plan(model, x, structure="channel", budget=topiarist.Budget(macs=0.5)), x)
    folder = save(small, tmp_path)
    loaded = load(folder, build=lambda: models.build("resnet20").to(memory_format=torch.channels_last))
    assert_same(small, loaded)
    same = [a.stride() == b.stride() for a, b in zip(small.parameters(), loaded.parameters(), strict=True)]
    assert all(same) is not sabotaged


def test_the_round_trip_check_catches_what_is_lost() -> None:
    torch.manual_seed(0)
    model = shrink_by_hand(Net())
    for sabotage in ("num_heads", "embed", "running_var"):
        twin = copy.deepcopy(model)
        if sabotage == "num_heads":
            twin.num_heads = 4
        elif sabotage == "embed":
            twin.embed.weight.data[0, 0] = -0.0 if bits(twin.embed.weight[0, 0]) != bits(torch.tensor(-0.0)) else 1.0
        else:
            twin.bn.running_var = torch.nextafter(twin.bn.running_var, torch.tensor(9.0))
        with pytest.raises(AssertionError):
            assert_same(model, twin)


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    model = Net()
    save(model, tmp_path / "a")
    save(copy.deepcopy(model), tmp_path / "b")
    for name in (layout.WEIGHTS, layout.DESCRIPTION):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("dtype", layout.DTYPES.values(), ids=layout.DTYPES)
def test_every_dtype_keeps_its_bits_dense_and_sparse(tmp_path: Path, dtype: torch.dtype) -> None:
    size = torch.empty(0, dtype=dtype).element_size()
    raw = np.random.default_rng(0).integers(0, 2 if dtype == torch.bool else 256, 400 * size, np.uint8)

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("full", torch.from_numpy(raw.copy()).view(dtype).reshape(20, 20))
            self.register_buffer(
                "masked",
                torch.from_numpy(np.where(np.arange(raw.size) < 8 * size, raw, 0).astype(np.uint8)).view(dtype),
            )

    model = Holder()
    if dtype.is_floating_point:
        model.masked[-3:] = -0.0
    save(model, tmp_path)
    described = json.loads((tmp_path / layout.DESCRIPTION).read_text())["tensors"]
    assert described["masked"]["storage"] == ("sparse-signed" if dtype.is_floating_point else "sparse")
    assert_same(model, load(tmp_path, build=Holder))


def test_zeros_take_an_eighth_of_a_byte_and_negative_zeros_a_quarter(tmp_path: Path) -> None:
    model = nn.Linear(256, 256, bias=False)
    removed = torch.rand(256, 256) < 0.9
    model.weight.data.masked_fill_(removed, 0)
    model.weight.data[0, :3] = torch.tensor([float("nan"), float("inf"), 1e-45])
    num, num_stored = 256 * 256, int((model.weight != 0).sum())
    for storage, expected in (("sparse", num / 8), ("sparse-signed", num / 8 + (num - num_stored) / 8)):
        expected += 4 * num_stored
        save(model, tmp_path)
        assert json.loads((tmp_path / layout.DESCRIPTION).read_text())["tensors"]["weight"]["storage"] == storage
        assert expected < (tmp_path / layout.WEIGHTS).stat().st_size < expected + 500
        assert_same(model, load(tmp_path, build=lambda: nn.Linear(256, 256, bias=False)))
        model.weight.data[model.weight == 0] *= -1  # as a negative weight times a mask leaves it


def pack_by_loop(flags: list[bool]) -> bytes:
    packed = bytearray((len(flags) + 7) // 8)
    for i, flag in enumerate(flags):
        packed[i // 8] |= flag << (7 - i % 8)
    return bytes(packed)


SIGN = 1 << 31


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from([0, 0, 0, SIGN, 0x7FC00001, 0xFFFFFFFF, 1, 0x3F800000]), max_size=300),
    st.booleans(),
    st.booleans(),
)
def test_sparse_codec_is_exact_and_never_larger(words: list[int], pad: bool, integers: bool) -> None:
    array = np.array(words + [0] * (200 * pad), np.uint32)
    tensor = torch.from_numpy(array.view(np.int32 if integers else np.float32).copy())
    parts = layout.encode(tensor)
    if "" in parts:
        assert bits(parts[""]) == array.tobytes()
        return
    zero = [word == 0 or (word == SIGN and not integers) for word in array.tolist()]
    assert bits(parts[layout.BITS]) == pack_by_loop([not z for z in zero])
    assert bits(parts[layout.VALUES]) == array[~np.array(zero)].tobytes()
    negative = [word == SIGN for word, z in zip(array.tolist(), zero, strict=True) if z]
    assert (layout.SIGNS in parts) == any(negative)
    if any(negative):
        assert bits(parts[layout.SIGNS]) == pack_by_loop(negative)
    assert sum(part.nbytes for part in parts.values()) < tensor.nbytes
    decoded = layout.decode(
        parts[layout.BITS], parts[layout.VALUES], parts.get(layout.SIGNS), list(tensor.shape), tensor.dtype
    )
    assert bits(decoded) == array.tobytes()


def test_a_codec_without_signs_would_lose_negative_zeros() -> None:
    tensor = torch.zeros(2000)
    tensor[5] = -0.0
    parts = layout.encode(tensor)
    whole = (parts[layout.BITS], parts[layout.VALUES])
    assert bits(layout.decode(*whole, parts[layout.SIGNS], [2000], torch.float32)) == bits(tensor)
    assert bits(layout.decode(*whole, None, [2000], torch.float32)) != bits(tensor)  # the sabotaged twin


@pytest.mark.parametrize(
    ("packed", "values", "signs", "shape"),
    [
        ([255, 1], 9, None, [15]), ([255, 128], 8, None, [9]), ([255], 8, None, [9]), ([255, 0, 0], 8, None, [9]),
        ([255], 8, None, [2**40]), ([255, 0], 8, [0, 0], [9]), ([255, 0], 8, [1], [9]),
    ],
    ids=["padding bit", "few values", "few bits", "many bits", "huge shape", "many signs", "padding sign"],
)  # fmt: skip
def test_bits_that_do_not_fit_are_refused(
    packed: list[int], values: int, signs: list[int] | None, shape: list[int]
) -> None:
    as_bytes = [None if b is None else torch.tensor(b, dtype=torch.uint8) for b in (packed, signs)]
    with pytest.raises(FormatError):
        layout.decode(as_bytes[0], torch.ones(values), as_bytes[1], shape, torch.float32)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- what load builds


def test_loading_leaves_derived_tensors_alone_where_the_class_makes_them(tmp_path: Path) -> None:
    model = Net()
    model.cache += 100  # not part of the model's state: same shape, other contents
    save(model, tmp_path)
    assert torch.equal(load(tmp_path, build=Net).cache, torch.arange(8.0))


def test_ties_made_and_broken_by_hand_come_back(tmp_path: Path) -> None:
    def build() -> nn.ModuleList:
        return nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)])

    def tied() -> nn.ModuleList:
        model = build()
        model[1].weight = model[0].weight
        return model

    save(tied(), tmp_path / "tied")
    loaded = load(tmp_path / "tied", build=build)
    assert loaded[1].weight is loaded[0].weight
    assert loaded[2].weight is not loaded[0].weight
    save(build(), tmp_path / "free")
    loaded = load(tmp_path / "free", build=tied)
    assert loaded[1].weight is not loaded[0].weight
    assert not torch.equal(loaded[1].weight, loaded[0].weight)


def test_a_module_used_under_two_names_is_stored_once(tmp_path: Path) -> None:
    def build() -> nn.ModuleDict:
        layer = nn.Linear(3, 3)
        return nn.ModuleDict({"one": layer, "two": layer})

    model = build()
    save(model, tmp_path)
    assert set(load_file(tmp_path / layout.WEIGHTS)) == {"one.weight", "one.bias"}
    assert_same(model, load(tmp_path, build=build))


def test_parameters_keep_their_identity_for_whoever_refers_to_them(tmp_path: Path) -> None:
    model = nn.LSTM(4, 5, bidirectional=True)  # keeps a list of its own weights
    save(model, tmp_path)
    loaded = load(tmp_path, build=lambda: nn.LSTM(4, 5, bidirectional=True))
    x = torch.randn(3, 2, 4)
    assert torch.equal(model(x)[0], loaded(x)[0])


def test_a_bias_can_appear_or_go(tmp_path: Path) -> None:
    for has_bias in (True, False):
        save(nn.Linear(3, 2, bias=has_bias), tmp_path)
        loaded = load(tmp_path, build=lambda has_bias=has_bias: nn.Linear(3, 2, bias=not has_bias))
        assert (loaded.bias is not None) == has_bias


def test_dtype_of_the_file_wins_and_building_on_meta_works(tmp_path: Path) -> None:
    model = Net().double()
    save(model, tmp_path)

    def on_meta() -> Net:
        with torch.device("meta"):
            return Net()

    for build in (Net, on_meta):
        loaded = load(tmp_path, build=build)
        assert loaded.norm.weight.dtype == torch.float64
        assert not any(t.is_meta for t in all_tensors(loaded).values())
        assert loaded.head.weight is loaded.embed.weight


def test_views_of_one_buffer_are_stored_apart(tmp_path: Path) -> None:
    flat = torch.randn(12)

    def build() -> nn.Module:
        model = nn.Module()
        model.a, model.b = nn.Parameter(flat[:4].view(2, 2).t()), nn.Parameter(flat[4:])
        model.c = nn.Parameter(flat[4:])
        return model

    save(build(), tmp_path)
    assert_same(build(), load(tmp_path, build=build))


def test_a_config_shared_by_the_callers_other_models_is_not_touched(tmp_path: Path) -> None:
    class Config:
        hidden = 0

        def __init__(self, hidden: int) -> None:
            self.hidden = hidden

    class Block(nn.Module):
        def __init__(self, config: Config) -> None:
            super().__init__()
            self.config = config
            self.linear = nn.Linear(config.hidden, 1)

    save(Block(Config(4)), tmp_path)
    config = Config(8)
    loaded = load(tmp_path, build=lambda: Block(config))
    assert (loaded.config.hidden, config.hidden) == (4, 8)


def test_the_plan_is_kept(tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    plan = Plan("weight", {"weight": torch.tensor([True] * 2 + [False] * 4)}, requested={"sparsity": 0.3})
    assert load_plan(save(model, tmp_path / "without")) is None
    read = load_plan(save(model, tmp_path / "with", plan=plan))
    assert read == plan
    assert read.requested == {"sparsity": 0.3}
    assert active_plan(load(tmp_path / "with", build=lambda: nn.Linear(3, 2))) is None


def test_a_masked_model_comes_back_masked(tmp_path: Path) -> None:
    model = nn.Linear(30, 20)
    plan = Plan("weight", {"weight": torch.rand(600) < 0.9})
    mask(model, plan)
    loaded = load(save(model, tmp_path), build=lambda: nn.Linear(30, 20))
    assert active_plan(loaded) == plan
    optimizer = torch.optim.SGD(loaded.parameters(), 0.1, momentum=0.9)
    loaded(torch.randn(4, 30)).square().sum().backward()
    optimizer.step()
    assert (loaded.weight.detach().flatten()[plan.removed["weight"]] == 0).all()
    assert (loaded.weight.detach() != model.weight.detach()).any()
    with pytest.raises(InputError, match="is masked by"):
        save(model, tmp_path, plan=Plan("weight", {"weight": torch.zeros(600, dtype=torch.bool)}))
    for each in (model, loaded):
        unmask(each)


# ------------------------------------------------------------------------------------------------- what save refuses


class Extra(nn.Module):
    def get_extra_state(self) -> object:
        return object()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.LazyLinear(3), "no data yet"),
        (nn.Linear(2, 2, device="meta"), "no data yet"),
        (nn.Sequential(Extra()), "extra state"),
        (nn.ParameterList([torch.zeros(2, dtype=torch.complex128)]), "complex128"),
        (nn.ParameterList([torch.eye(2).to_sparse()]), "sparse"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_what_has_no_place_in_the_format_is_refused(tmp_path: Path, model: nn.Module, message: str) -> None:
    with pytest.raises(InputError, match=message):
        save(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_in_the_way_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="folder"):
        save(nn.Linear(1, 1), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "mine"


# ------------------------------------------------------------------------------------------------- a save that fails


@pytest.mark.parametrize("call", range(5))
def test_a_save_that_stops_anywhere_leaves_one_whole_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Stop before each of: syncing the two files, moving the old weights away, the new ones in, the description in."""
    old, new = nn.Linear(3, 2), nn.Linear(3, 2)
    save(old, tmp_path)
    done = 0

    def stopping(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            nonlocal done
            done += 1
            if done > call:
                raise KeyboardInterrupt
            return function(*arguments)

        return run

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, stopping(getattr(os, name)))
    with pytest.raises(KeyboardInterrupt):
        save(new, tmp_path)
    monkeypatch.undo()
    assert_same(old, load(tmp_path, build=lambda: nn.Linear(3, 2)))
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]
    save(new, tmp_path)
    assert_same(new, load(tmp_path, build=lambda: nn.Linear(3, 2)))
    assert sorted(p.name for p in tmp_path.iterdir()) == [layout.DESCRIPTION, layout.WEIGHTS]


@pytest.mark.parametrize("call", [3, 4])
def test_two_saves_that_stop_in_a_row_still_leave_the_old_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    old = nn.Linear(3, 2)
    save(old, tmp_path)
    replace = os.replace
    for _ in range(2):
        moves: list[Path] = []

        def stopping(source: Path, target: Path, moves: list[Path] = moves) -> None:
            moves.append(target)
            if target.name == layout.DESCRIPTION or len(moves) == call:
                raise OSError("disk full")
            replace(source, target)

        monkeypatch.setattr(os, "replace", stopping)
        with pytest.raises(OSError, match="disk full"):
            save(nn.Linear(3, 2), tmp_path)
        monkeypatch.undo()
    assert_same(old, load(tmp_path, build=lambda: nn.Linear(3, 2)))


def test_writing_in_place_would_lose_the_old_model(tmp_path: Path) -> None:
    save(nn.Linear(3, 2), tmp_path)
    save_file({"weight": torch.zeros(2, 3)}, tmp_path / layout.WEIGHTS)  # the sabotaged twin, stopped half way
    with pytest.raises(FormatError, match="damaged or belongs to another model"):
        load(tmp_path, build=lambda: nn.Linear(3, 2))


# ------------------------------------------------------------------------------------------------- damaged and foreign


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 20), nn.LayerNorm(20))
    model[0].weight.data[:, 2:] = 0
    return model, save(model, tmp_path_factory.mktemp("model"))


def build() -> nn.Module:
    return nn.Sequential(nn.Linear(50, 30), nn.LayerNorm(30))


def copied(saved: tuple[nn.Module, Path], folder: Path) -> Path:
    for file in saved[1].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize("name", [layout.WEIGHTS, layout.DESCRIPTION])
def test_a_flipped_byte_is_refused_or_harmless(saved: tuple[nn.Module, Path], tmp_path: Path, name: str) -> None:
    """Every byte of the weights is covered; in the description, only white space can change without being noticed."""
    folder = copied(saved, tmp_path)
    whole = (folder / name).read_bytes()
    generator = random.Random(0)  # noqa: S311
    for position in [*range(0, len(whole), max(1, len(whole) // 400)), len(whole) - 1]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << generator.randrange(8)
        (folder / name).write_bytes(damaged)
        try:
            loaded = load(folder, build=build)
        except FormatError:
            continue
        assert name == layout.DESCRIPTION
        assert_same(saved[0], loaded)


@pytest.mark.parametrize("name", [layout.WEIGHTS, layout.DESCRIPTION])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(saved: tuple[nn.Module, Path], tmp_path: Path, name: str, kept: float) -> None:
    folder = copied(saved, tmp_path)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(FormatError):
        load(folder, build=build)


@pytest.mark.parametrize("name", [layout.WEIGHTS, layout.DESCRIPTION])
def test_a_missing_file_is_refused_by_name(saved: tuple[nn.Module, Path], tmp_path: Path, name: str) -> None:
    (copied(saved, tmp_path) / name).unlink()
    with pytest.raises(FormatError, match=name):
        load(tmp_path, build=build)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no saved model at"):
        load(tmp_path / "nowhere", build=build)


FOREIGN = ["", "[]", "3", "null", "{}", '{"format": "onnx"}', '{"format": ["topiarist-model"]}', "[" * 100_000, "\xff{"]


@pytest.mark.parametrize("text", FOREIGN, ids=range(len(FOREIGN)))
def test_foreign_descriptions_are_refused(saved: tuple[nn.Module, Path], tmp_path: Path, text: str) -> None:
    (copied(saved, tmp_path) / layout.DESCRIPTION).write_bytes(text.encode("latin-1"))
    with pytest.raises(FormatError, match=layout.DESCRIPTION):
        load(tmp_path, build=build)


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the description and give it a digest that fits, as a hostile writer would."""
    raw = json.loads((folder / layout.DESCRIPTION).read_text())
    del raw["digest"]
    change(raw)
    (folder / layout.DESCRIPTION).write_text(json.dumps({**raw, "digest": layout.digest(raw)}))


def test_a_newer_version_says_so(saved: tuple[nn.Module, Path], tmp_path: Path) -> None:
    rewrite(copied(saved, tmp_path), lambda raw: raw.update(version=3))
    with pytest.raises(FormatError, match="version 3, this topiarist reads versions 1 to 2"):
        load(tmp_path, build=build)


def entry(name: str, **values: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda raw: raw["tensors"][name].update(values)


OTHER = json.loads(Plan("weight", {"other": torch.tensor([True])}).to_json())
HOSTILE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "unknown key": lambda raw: raw.update({"class": "os.system"}),
    "class in an entry": entry("0.bias", **{"class": "torch.nn.Linear"}),
    "missing key": lambda raw: raw.pop("tied"),
    "attributes are a list": lambda raw: raw.update(attributes=[1]),
    "attribute is text": lambda raw: raw["attributes"].update({"0.in_features": "40"}),
    "attribute is a float": lambda raw: raw["attributes"].update({"0.in_features": 40.5}),
    "attribute is true": lambda raw: raw["attributes"].update({"0.in_features": True}),
    "attribute __class__": lambda raw: raw["attributes"].update({"0.__class__": 1}),
    "attribute __dict__": lambda raw: raw["attributes"].update({"0.__dict__->in_features": 1}),
    "attribute training": lambda raw: raw["attributes"].update({"0.training": 1}),
    "attribute forward": lambda raw: raw["attributes"].update({"0.forward": 1}),
    "attribute _modules": lambda raw: raw["attributes"].update({'_modules["0"]': 1}),
    "attribute unknown": lambda raw: raw["attributes"].update({"0.in_feature": 1}),
    "attribute of no module": lambda raw: raw["attributes"].update({"7.in_features": 1}),
    "negative size": entry("0.bias", shape=[-20]),
    "huge size": entry("0.bias", shape=[10**15]),
    "huge sparse size": entry("0.weight", shape=[10**9, 10**9]),
    "size beyond 64 bits": entry("0.weight", shape=[2**63, 1]),
    "empty but huge": entry("0.weight", shape=[0, 2**62, 2**62]),
    "size is text": entry("0.bias", shape=["20"]),
    "other shape": entry("1.weight", shape=[4, 5]),
    "other dtype": entry("0.bias", dtype="int32"),
    "unknown dtype": entry("0.bias", dtype="object"),
    "unknown storage": entry("0.bias", storage="pickle"),
    "dense as sparse": entry("0.bias", storage="sparse"),
    "sparse as dense": entry("0.weight", storage="dense"),
    "unknown kind": entry("0.bias", kind="module"),
    "parameter as buffer": entry("0.bias", kind="buffer"),
    "parameter as derived": entry("0.bias", kind="derived"),
    "missing tensor": lambda raw: raw["tensors"].pop("0.bias"),
    "emptied twice": lambda raw: raw["empty"].append("0.bias"),
    "empty and unknown": lambda raw: raw["empty"].append("0.biases"),
    "tied to nothing": lambda raw: raw["tied"].update({"1.bias": "2.bias"}),
    "tied twice": lambda raw: raw["tied"].update({"1.bias": "0.bias"}),
    "tied and unknown": lambda raw: raw["tied"].update({"9.bias": "0.bias"}),
    "tensor under another name": lambda raw: raw["tensors"].update({"0.b": raw["tensors"].pop("0.bias")}),
    "weights of another size": lambda raw: raw["weights"].update(bytes=1),
    "weights elsewhere": lambda raw: raw["weights"].update(file="../../secret"),
    "masked without a plan": lambda raw: raw.update(masked=True),
    "plan is text": lambda raw: raw.update(plan="os.system"),
    "plan of another kind": lambda raw: raw.update(plan={"format": "pickle"}),
    "plan of a huge size": lambda raw: raw.update(plan={**OTHER, "removed": {"w": {"size": 10**15, "indices": []}}}),
    "plan for another model": lambda raw: raw.update(masked=True, plan=OTHER),
    "digest of another kind": lambda raw: raw["weights"].update(sha256="0"),
}  # fmt: skip


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_description_is_refused(
    saved: tuple[nn.Module, Path], tmp_path: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    rewrite(copied(saved, tmp_path), change)
    with pytest.raises(FormatError):
        load(tmp_path, build=build)


def test_the_hostile_rewriting_itself_is_accepted_when_it_changes_nothing(
    saved: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    rewrite(copied(saved, tmp_path), lambda raw: None)
    assert_same(saved[0], load(tmp_path, build=build))


def test_integer_that_claims_a_gradient_is_refused(tmp_path: Path) -> None:
    rewrite(save(Net(), tmp_path), entry("frozen", requires_grad=True))
    with pytest.raises(FormatError, match="requires a gradient"):
        load(tmp_path, build=Net)


def test_a_foreign_weights_file_with_a_fitting_digest_is_refused(saved: tuple[nn.Module, Path], tmp_path: Path) -> None:
    folder = copied(saved, tmp_path)
    content = pickle.dumps({"weight": torch.zeros(1)})
    (folder / layout.WEIGHTS).write_bytes(content)
    digest = layout.file_digest(folder / layout.WEIGHTS)
    rewrite(folder, lambda raw: raw.update(weights={"bytes": len(content), "sha256": digest}))
    with pytest.raises(FormatError, match="cannot be read"):
        load(folder, build=build)


def test_names_that_do_not_fit_come_with_the_nearest(saved: tuple[nn.Module, Path]) -> None:
    with pytest.raises(FormatError, match=r"'1\.weight', which Sequential does not have \(nearest"):
        load(saved[1], build=lambda: nn.Sequential(nn.Linear(40, 20)))
    with pytest.raises(FormatError, match=r"has '2\.weight', which the file lacks \(nearest"):
        load(saved[1], build=lambda: nn.Sequential(*build(), nn.Linear(1, 1)))
    with pytest.raises(FormatError, match="number of dimensions"):
        load(saved[1], build=lambda: nn.Sequential(nn.Conv1d(4, 4, 1), nn.LayerNorm(4)))
    with pytest.raises(InputError, match="build must return"):
        load(saved[1], build=dict)  # type: ignore[arg-type]


def test_an_attribute_set_while_running_is_explained(tmp_path: Path) -> None:
    class Counting(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            self.last_size = len(x)
            return super().forward(x)

    def ran() -> nn.Module:
        model = Counting(2, 2)
        model(torch.zeros(1, 2))
        return model

    save(ran(), tmp_path)
    with pytest.raises(FormatError, match=r"'last_size'.* let build\(\) run it once"):
        load(tmp_path, build=lambda: Counting(2, 2))
    assert load(tmp_path, build=ran).last_size == 1


def test_nothing_is_executed_or_imported_while_loading(
    saved: tuple[nn.Module, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only thing load calls from outside is ``build``: no unpickling, no new module, no call by a stored name."""
    load(saved[1], build=build)
    before = set(sys.modules)
    events: list[str] = []
    forbidden = {"pickle.find_class", "exec", "compile", "import", "os.system", "subprocess.Popen", "marshal.loads"}
    recording = True
    sys.addaudithook(lambda event, _: events.append(event) if recording and event in forbidden else None)
    load(saved[1], build=build)
    load_plan(saved[1])
    recording = False
    assert events == []
    assert set(sys.modules) == before


def test_the_files_are_plain_safetensors_and_json(saved: tuple[nn.Module, Path]) -> None:
    """Read as docs/format.md says, without any of our code."""
    raw = (saved[1] / layout.WEIGHTS).read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]

    def part(name: str) -> bytes:
        start, end = header[name]["data_offsets"]
        return data[start:end]

    stored, values = part("0.weight.__bits__"), iter(np.frombuffer(part("0.weight.__values__"), "<f4"))
    weight = np.zeros(800, "<f4")
    for i in range(800):
        if stored[i // 8] >> (7 - i % 8) & 1:
            weight[i] = next(values)
    assert weight.tobytes() == bits(saved[0][0].weight)
    assert part("0.bias") == bits(saved[0][0].bias)
    with safe_open(saved[1] / layout.WEIGHTS, "pt") as file:
        assert file.metadata() == {"format": "pt"}
