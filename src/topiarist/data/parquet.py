"""Image data sets as the Hugging Face hub stores them: parquet files or a hub name, decoded once into one tensor.

Reading goes through ``datasets`` (the extra ``topiarist[data]``); nothing is cached on disk for local files.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from topiarist.errors import FormatError, InputError

Progress = Callable[[int, int], None]  # called with (num done, num in all)

_SPLITS = {"train": ("train",), "test": ("test", "validation", "valid", "val")}
_CHUNK = 500


class Images(NamedTuple):
    """Decoded images: uint8 (num, channels, height, width), labels int64 (num,), and how many classes there are."""

    images: Tensor
    labels: Tensor
    num_classes: int


def read_folder(folder: str | Path, progress: Progress | None = None) -> tuple[Images, Images]:
    """(train, test) from the files ``train*.parquet`` and ``test*.parquet`` (or ``validation*``) of a folder.

    The image column is found by its type, and so is the label column (a class label, or the only integers).

    Raises:
        InputError: ``datasets`` is not installed, or the folder lacks a split, or a split an image or a label column.
        FormatError: a file is not parquet or is damaged, or an image cannot be read or differs in size.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; try a folder that holds train.parquet and test.parquet")
    train, test = (_read_files(folder, _split_files(folder, split), progress) for split in ("train", "test"))
    return train, test


def read_hub(name: str, progress: Progress | None = None) -> tuple[Images, Images]:
    """(train, test) of a data set on the Hugging Face hub, for example ``"ylecun/mnist"``.

    Raises:
        InputError: ``datasets`` is missing, the hub has no such data set or is out of reach, or a split is absent.
        FormatError: an image cannot be read or differs in size from the others.
    """
    datasets = _import_datasets()
    try:
        found = datasets.load_dataset(name)
    except Exception as error:  # the hub's client raises a dozen unrelated types
        raise InputError(
            f"{name!r} could not be loaded from the hub ({type(error).__name__}: {error}); try 'digits', a folder with "
            "train.parquet and test.parquet, or package.module:function"
        ) from error
    splits = [next((s for s in _SPLITS[split] if s in found), None) for split in ("train", "test")]
    if None in splits:
        raise InputError(f"{name!r} needs a train and a test split, it has {', '.join(found)}")
    train, test = (_decode(found[split], found[split].num_rows, name, progress) for split in splits)
    return train, test


def _import_datasets() -> Any:
    try:
        import datasets
    except ImportError:
        raise InputError(
            "reading parquet and hub data needs the package datasets; pip install 'topiarist[data]'"
        ) from None
    return datasets


def _split_files(folder: Path, split: str) -> list[str]:
    for prefix in _SPLITS[split]:
        if files := sorted(folder.glob(f"{prefix}*.parquet")):
            return [str(f) for f in files]
    there = ", ".join(sorted(f.name for f in folder.iterdir())[:8]) or "nothing"
    raise InputError(f"{folder} has no {split}.parquet; it holds {there}")


def _read_files(folder: Path, files: list[str], progress: Progress | None) -> Images:
    datasets = _import_datasets()
    from pyarrow import ArrowException, parquet  # type: ignore[import-untyped]  # comes with datasets

    try:
        num_rows = sum(parquet.read_metadata(f).num_rows for f in files)
        with tempfile.TemporaryDirectory() as scratch:  # a lock file, no data
            table = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True, cache_dir=scratch)
            return _decode(table, num_rows, str(folder), progress)
    except ArrowException as error:
        raise FormatError(f"{folder}: not a parquet file, or a damaged one ({error})") from error


def _decode(table: Any, num_rows: int, name: str, progress: Progress | None) -> Images:
    datasets = _import_datasets()
    image, label, num_classes = _columns(table.features or {}, datasets, name)
    rows = table.cast_column(image, datasets.Image(decode=False)).select_columns([image, label])
    labels = np.empty(num_rows, np.int64)
    pixels: np.ndarray[Any, Any] | None = None
    done = 0
    for chunk in rows.iter(batch_size=_CHUNK):
        for raw, target in zip(chunk[image], chunk[label], strict=True):
            array = _read_image(raw, None if pixels is None else pixels.shape[1], name, done)
            if pixels is None:
                pixels = np.empty((num_rows, *array.shape), np.uint8)
            if array.shape != pixels.shape[1:]:
                raise FormatError(f"{name}: image {done} has shape {array.shape}, the first {pixels.shape[1:]}")
            pixels[done] = array
            labels[done] = target
            done += 1
        if progress is not None:
            progress(done, num_rows)
    if pixels is None:
        raise InputError(f"{name}: a split without a single row")
    return Images(torch.from_numpy(pixels), torch.from_numpy(labels), num_classes or int(labels.max()) + 1)


def _columns(features: Mapping[str, Any], datasets: Any, name: str) -> tuple[str, str, int]:
    """The image column, the label column and the number of classes (0 where the type does not say)."""
    images = [k for k, v in features.items() if isinstance(v, datasets.Image)]
    classes = [k for k, v in features.items() if isinstance(v, datasets.ClassLabel)]
    integers = [k for k, v in features.items() if str(getattr(v, "dtype", "")).startswith(("int", "uint"))]
    labels = classes if len(classes) == 1 else integers
    if len(images) != 1 or len(labels) != 1:
        raise InputError(
            f"{name} needs one image column and one label column, found {_names(images)} and {_names(labels)} "
            f"among {_names(features)}; for other data write a function and pass package.module:function"
        )
    return images[0], labels[0], int(features[labels[0]].num_classes) if classes else 0


def _names(columns: Iterable[str]) -> str:
    return ", ".join(columns) or "none"


def _read_image(raw: Mapping[str, Any], channels: int | None, name: str, index: int) -> np.ndarray[Any, Any]:
    """One image as uint8 (channels, height, width): grey ones have one channel, all others three."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(raw["path"] if raw["bytes"] is None else io.BytesIO(raw["bytes"])) as picture:
            grey = picture.mode in ("L", "1") if channels is None else channels == 1
            array = np.asarray(picture.convert("L" if grey else "RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, TypeError) as error:
        raise FormatError(f"{name}: image {index} cannot be read ({error})") from error
    return array[None] if grey else array.transpose(2, 0, 1)
