"""From what a user writes after ``--data`` to a train and a test loader."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from topiarist.data.digits import digits
from topiarist.data.loader import Batches, first_batch
from topiarist.data.parquet import Progress, read_folder, read_hub
from topiarist.data.text import Segments, read_characters
from topiarist.errors import InputError, nearest
from topiarist.inputs import as_batch

DEFAULT = "digits"


@dataclass(frozen=True, eq=False)
class Data:
    """A train and a test loader, how many classes there are (where it is known) and one example input."""

    train: Iterable[Any]
    test: Iterable[Any]
    num_classes: int | None
    example_inputs: Any


def load_data(
    spec: str = DEFAULT,
    *,
    batch_size: int = 128,
    seed: int = 0,
    pad: int = 0,
    flip: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    progress: Progress | None = None,
) -> Data:
    """The data that ``spec`` names, ready to train on.

    ``spec`` is ``"digits"`` (embedded), a folder with ``train.parquet`` and ``test.parquet``, a text file ending in
    ``.txt`` (or called ``enwik8``, which is read as bytes), the name of a data set on the Hugging Face hub, or
    ``"package.module:function"``: the function takes nothing and returns a `Data` or
    ``(train, test)``, two iterables of ``(inputs, targets)``, which stay as they are. Otherwise the train loader
    shuffles by ``seed`` and augments by ``pad`` and ``flip``, and both loaders normalise by ``mean`` and ``std`` (see
    `Batches`). ``progress(num_done, num_all)`` is called while decoding.

    Raises:
        InputError: nothing is found under ``spec``, a loader yields nothing, or an option does not fit.
        FormatError: a file is damaged or holds something else.

    Example:
        >>> data = load_data("digits")
        >>> len(data.train), data.num_classes, data.example_inputs.shape
        (12, 10, torch.Size([1, 1, 8, 8]))
    """
    if ":" in spec and not Path(spec).exists():
        if pad or flip or mean is not None or std is not None:
            raise InputError(f"pad, flip, mean and std are not applied to the loaders of {spec}; do so in the function")
        return _from_function(spec)
    if Path(spec).suffix == ".txt" or Path(spec).name == "enwik8":
        if pad or flip or mean is not None or std is not None:
            raise InputError(f"pad, flip, mean and std are for images, {spec} is text")
        return _text(spec, batch_size, seed)
    if spec == DEFAULT:
        train, test = digits()
        num_classes = 10
    else:
        train_images, test_images = _read(spec, progress)
        num_classes = max(train_images.num_classes, test_images.num_classes)
        train, test = train_images[:2], test_images[:2]
    batches = Batches(*train, batch_size, shuffle=True, seed=seed, pad=pad, flip=flip, mean=mean, std=std)
    test_batches = Batches(*test, max(batch_size, 256), mean=mean, std=std)
    return Data(batches, test_batches, num_classes, test_batches.examples())


def _text(spec: str, batch_size: int, seed: int) -> Data:
    train, _, test, vocabulary = read_characters(spec, as_bytes=Path(spec).name == "enwik8")
    batches = Segments(train, batch_size, shuffle=True, seed=seed)
    test_batches = Segments(test, batch_size)
    return Data(batches, test_batches, len(vocabulary), test[None, : test_batches.length])


def _read(spec: str, progress: Progress | None) -> Any:
    if Path(spec).is_dir():
        return read_folder(spec, progress)
    if spec.startswith((".", "/", "~")) or spec.endswith(".parquet") or spec.count("/") > 1 or Path(spec).exists():
        raise InputError(f"{spec} is not a folder; try 'digits' or a folder that holds train.parquet and test.parquet")
    return read_hub(spec, progress)


def _from_function(spec: str) -> Data:
    found = import_object(spec)()
    if isinstance(found, Data):
        return found
    if not isinstance(found, tuple) or len(found) != 2:
        raise InputError(
            f"{spec} must return (train, test) or a topiarist.data.Data, it returned {type(found).__name__}"
        )
    train, test = found
    as_batch(first_batch(train))
    inputs, _ = as_batch(first_batch(test))
    return Data(train, test, None, _first_row(inputs))


def _first_row(inputs: Any) -> Any:
    if isinstance(inputs, Tensor):
        return inputs[:1]
    if isinstance(inputs, (tuple, list)):
        return tuple(_first_row(x) for x in inputs)
    return {k: _first_row(v) for k, v in inputs.items()} if isinstance(inputs, dict) else inputs


def import_object(spec: str) -> Any:
    """What ``"package.module:name"`` names.

    Raises:
        InputError: the module cannot be imported or has no such name.

    Example:
        >>> import_object("topiarist.models:LeNet5").__name__
        'LeNet5'
    """
    module_name, _, name = spec.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module raises
        raise InputError(
            f"{module_name!r} of {spec!r} could not be imported ({type(error).__name__}: {error}); is it installed, or "
            "its folder on PYTHONPATH?"
        ) from error
    if not hasattr(module, name):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise InputError(f"{module_name} has no {name!r} ({nearest(name, public)})")
    return getattr(module, name)
