"""Data: batches against NumPy loops, parquet files written on the spot, what a user may name, clear refusals."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from topiarist.data import Batches, Data, digits, first_batch, import_object, load_data, read_folder, read_hub
from topiarist.errors import FormatError, InputError

datasets = pytest.importorskip("datasets", reason="the extra topiarist[data] is not installed")
Image = pytest.importorskip("PIL.Image")


def _pixels(num: int = 6, channels: int = 1, side: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num, side, side, channels), np.uint8)


def _encode(array: np.ndarray, kind: str = "PNG") -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(buffer, kind)
    return {"bytes": buffer.getvalue(), "path": None}


def _write(folder: Path, name: str, images: list[Any], labels: list[Any], **features: Any) -> None:
    features = {"img": datasets.Image(), "label": datasets.ClassLabel(num_classes=4)} | features
    table = datasets.Dataset.from_dict(dict(zip(features, (images, labels), strict=True)), datasets.Features(features))
    folder.mkdir(exist_ok=True)
    table.to_parquet(folder / name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        _write(tmp_path / "set", f"{split}.parquet", [_encode(a) for a in _pixels()], [0, 1, 2, 3, 0, 1])
    return tmp_path / "set"


# batches


def test_batches_visit_every_sample_once_in_an_order_that_seed_and_epoch_decide() -> None:
    x, y = torch.arange(10.0).view(10, 1), torch.arange(10)
    batches = Batches(x, y, 4, shuffle=True, seed=3)
    epochs = [torch.cat([t for _, t in batches]) for _ in range(3)]
    assert all(torch.equal(e.sort().values, y) for e in epochs)
    assert not torch.equal(epochs[0], epochs[1])
    assert [len(t) for _, t in batches] == [4, 4, 2]
    assert len(batches) == 3
    batches.set_epoch(1)
    again = list(batches)
    assert torch.equal(torch.cat([t for _, t in again]), epochs[1])
    assert all(torch.equal(inputs.flatten().long(), t) for inputs, t in again)
    other = Batches(x, y, 4, shuffle=True, seed=4)
    assert not torch.equal(torch.cat([t for _, t in other]), epochs[0])


def test_batches_leave_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    list(Batches(torch.zeros(9, 3, 4, 4), torch.zeros(9), 2, shuffle=True, pad=1, flip=True))
    assert torch.equal(torch.get_rng_state(), before)


def _assert_crops_and_flips(batches: Batches, x: np.ndarray, pad: int) -> None:
    """Every augmented image is one of the (2·pad + 1)² crops of its padded original, mirrored or not; many occur."""
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    height, width = x.shape[2:]
    seen = set()
    for out in (torch.cat([b for b, _ in batches]).numpy() for _ in range(20)):
        for i, image in enumerate(out):
            matches = [
                (r, c, mirrored)
                for r in range(2 * pad + 1)
                for c in range(2 * pad + 1)
                for mirrored in (False, True)
                if np.array_equal(image, padded[i, :, r : r + height, c : c + width][..., :: -1 if mirrored else 1])
            ]
            assert len(matches) == 1
            seen.update(matches)
    assert len(seen) == 2 * (2 * pad + 1) ** 2


def test_augmentation_against_a_loop() -> None:
    x = np.random.default_rng(0).random((8, 2, 4, 5))
    _assert_crops_and_flips(Batches(torch.from_numpy(x), torch.zeros(8), 3, pad=1, flip=True), x, 1)


def test_the_augmentation_oracle_catches_an_upside_down_flip(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).random((8, 2, 4, 5))
    batches = Batches(torch.from_numpy(x), torch.zeros(8), 3, pad=1, flip=True)
    monkeypatch.setattr(batches, "_augment", lambda inputs, generator: inputs.flip(2))
    with pytest.raises(AssertionError):
        _assert_crops_and_flips(batches, x, 1)


def test_bytes_become_fractions_and_channels_are_normalised() -> None:
    raw = _pixels(4, 3).transpose(0, 3, 1, 2)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    batches = Batches(torch.from_numpy(raw.copy()), torch.arange(4), 3, mean=mean, std=std)
    out = torch.cat([x for x, _ in batches])
    assert out.dtype == torch.float32
    expected = (raw / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(batches.examples(2), out[:2])
    assert batches.inputs.dtype == torch.uint8
    assert int(batches.inputs[0, 0, 0, 0]) == raw[0, 0, 0, 0]


@pytest.mark.parametrize(
    ("inputs", "targets", "options", "message"),
    [
        (torch.zeros(0, 1), torch.zeros(0), {}, "at least one"),
        (torch.zeros(3, 1), torch.zeros(2), {}, "3 inputs with 2 targets"),
        (torch.zeros(3, 1), torch.zeros(3), {"batch_size": 0}, "batch_size"),
        (torch.zeros(3, 1), torch.zeros(3), {"pad": 1}, "for images"),
        (torch.zeros(3, 2), torch.zeros(3), {"mean": (0.1,) * 3}, "one per channel"),
        (torch.zeros(3, 2), torch.zeros(3), {"std": (0.0,)}, "must be positive"),
    ],
)
def test_bad_batches_are_refused(inputs: Tensor, targets: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Batches(inputs, targets, **options)


def test_first_batch_refuses_what_yields_nothing_or_only_once() -> None:
    assert first_batch([1, 2]) == 1
    for bad, message in (([], "yields no batch"), (iter([1]), "only once"), (7, "iterable of batches")):
        with pytest.raises(InputError, match=message):
            first_batch(bad)  # type: ignore[arg-type]


# digits


def test_digits_are_always_the_same_disjoint_split() -> None:
    (train, train_labels), (test, test_labels) = digits()
    again = digits()
    assert torch.equal(train, again[0][0])
    assert torch.equal(test_labels, again[1][1])
    assert train.dtype == torch.float32
    assert (float(train.min()), float(train.max())) == (0, 1)
    assert len({*map(tuple, train.flatten(1).tolist())} & {*map(tuple, test.flatten(1).tolist())}) == 0
    assert torch.bincount(test_labels).min() >= 34
    assert len(train_labels) + len(test_labels) == 1797


# parquet


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_is_decoded_pixel_by_pixel(tmp_path: Path, channels: int) -> None:
    pixels, labels = _pixels(7, channels), [0, 1, 2, 3, 0, 1, 2]
    encoded = [_encode(a) for a in pixels]
    _write(tmp_path, "train-00000-of-00002.parquet", encoded[:4], labels[:4])
    _write(tmp_path, "train-00001-of-00002.parquet", encoded[4:], labels[4:])
    _write(tmp_path, "validation.parquet", encoded[:2], labels[:2])
    calls: list[tuple[int, int]] = []
    train, test = read_folder(tmp_path, lambda done, total: calls.append((done, total)))
    assert np.array_equal(train.images.numpy(), pixels.transpose(0, 3, 1, 2))
    assert train.labels.tolist() == labels
    assert (train.num_classes, len(test.images)) == (4, 2)
    assert calls[-1] == (2, 2)
    assert (7, 7) in calls


def test_the_only_integers_are_labels_where_no_column_says_so(tmp_path: Path) -> None:
    for name in ("train.parquet", "test.parquet"):
        _write(tmp_path, name, [_encode(a) for a in _pixels(3)], [5, 0, 1], label=datasets.Value("int64"))
    data = load_data(str(tmp_path), batch_size=2, pad=1, flip=True, mean=(0.5,), std=(0.5,))
    assert data.num_classes == 6
    assert data.example_inputs.shape == (1, 1, 5, 5)
    assert isinstance(data.train, Batches)
    assert (data.train.shuffle, data.train.pad, data.train.flip) == (True, 1, True)
    assert isinstance(data.test, Batches)
    assert (data.test.shuffle, data.test.pad, data.test.flip) == (False, 0, False)
    assert torch.equal(data.test.mean, data.train.mean)  # type: ignore[arg-type]


def test_nothing_is_left_on_disk(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    read_folder(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_bad_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        read_folder(tmp_path / "absent")
    (folder / "test.parquet").rename(folder / "other.parquet")
    with pytest.raises(InputError, match=r"no test.parquet; it holds other.parquet, train.parquet"):
        read_folder(folder)
    (folder / "test.parquet").write_bytes(b"not parquet at all, but long enough to be read")
    with pytest.raises(FormatError, match="not a parquet file"):
        read_folder(folder)
    whole = (folder / "train.parquet").read_bytes()
    (folder / "train.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match="damaged"):
        read_folder(folder)


@pytest.mark.parametrize(
    ("images", "features", "message"),
    [
        ([_encode(_pixels(1)[0]), _encode(_pixels(1, side=6)[0])], {}, "image 1 has shape"),
        ([_encode(_pixels(1)[0]), {"bytes": b"no image", "path": None}], {}, "image 1 cannot be read"),
        ([1, 2], {"img": datasets.Value("int64")}, "one image column"),
        ([_encode(_pixels(1)[0])] * 2, {"label": datasets.Value("float32")}, "one label column, found img and none"),
        ([], {}, "without a single row"),
    ],
)
def test_bad_rows_are_refused(tmp_path: Path, images: list[Any], features: dict[str, Any], message: str) -> None:
    for name in ("train.parquet", "test.parquet"):
        _write(tmp_path, name, images, [0, 1][: len(images)], **features)
    with pytest.raises((InputError, FormatError), match=message):
        read_folder(tmp_path)


def test_a_hub_name_is_read_through_the_same_decoder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    train, test = read_hub(str(folder))  # the hub's client takes a local folder like a name
    assert np.array_equal(train.images.numpy(), _pixels().transpose(0, 3, 1, 2))
    assert test.labels.tolist() == [0, 1, 2, 3, 0, 1]
    (folder / "test.parquet").unlink()
    with pytest.raises(InputError, match="needs a train and a test split, it has train"):
        read_hub(str(folder))


def test_a_hub_that_cannot_be_reached_says_what_to_try(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str) -> None:
        raise ConnectionError(f"no route to {name}")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(InputError, match=r"could not be loaded from the hub .* try 'digits', a folder"):
        load_data("someone/something")


def test_without_the_extra_the_error_names_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'topiarist\[data\]'"):
        load_data(str(folder))


# the user's own loaders


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = ModuleType("users_own")
    monkeypatch.setitem(sys.modules, "users_own", module)
    return module


def test_a_function_of_the_user(user: ModuleType) -> None:
    batch = ({"x": torch.arange(6).view(3, 2)}, torch.zeros(3))
    user.loaders = lambda: ([batch], [batch, batch])  # type: ignore[attr-defined]
    data = load_data("users_own:loaders")
    assert (len(data.train), len(data.test), data.num_classes) == (1, 2, None)  # type: ignore[arg-type]
    assert data.example_inputs["x"].tolist() == [[0, 1]]
    ready = Data([batch], [batch], 7, torch.zeros(1))
    user.ready = lambda: ready  # type: ignore[attr-defined]
    assert load_data("users_own:ready") is ready
    with pytest.raises(InputError, match="are not applied"):
        load_data("users_own:loaders", flip=True)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (([], []), "yields no batch"),
        (([(1, 2)], iter([(1, 2)])), "only once"),
        (([(1, 2)], [3]), "pair"),
        ([1, 2, 3], "must return"),
    ],
)
def test_bad_functions_are_refused(user: ModuleType, result: Any, message: str) -> None:
    user.loaders = lambda: result  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=message):
        load_data("users_own:loaders")


def test_bad_names_are_refused(user: ModuleType) -> None:
    user.loaders = lambda: None  # type: ignore[attr-defined]
    for spec, message in (
        ("users_own:loader", "nearest: loaders"),
        ("no_such_package_here:loaders", "could not be imported"),
        ("./absent", "is not a folder"),
        ("a/b/c", "is not a folder"),
    ):
        with pytest.raises(InputError, match=message):
            load_data(spec)
    assert import_object("users_own:loaders") is user.loaders
