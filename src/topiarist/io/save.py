"""Write a model to a folder, without pickle, so that a failure leaves what was there before."""

from __future__ import annotations

import json
import os
import platform
import uuid
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from topiarist.asked import require_module
from topiarist.errors import FormatError, InputError
from topiarist.io import format as layout
from topiarist.mask.attach import active_plan
from topiarist.plan import Plan


def save(model: nn.Module, path: str | os.PathLike[str], *, plan: Plan | None = None) -> Path:
    """Write ``model`` to the folder ``path`` as `model.safetensors` and `model.json`; `load` reads it back.

    Works for any model, shrunk by whatever means: what is stored is the shapes and contents of its tensors and the
    integers its modules hold. Tensors with many zeros are stored as bits and values, so a masked model takes less
    room. ``plan`` is kept beside it (`load_plan` reads it); a masked model's own plan is stored without asking, and
    `load` masks again. An older save in the folder is replaced as a whole or not at all.

    Raises:
        InputError: ``path`` is a file, ``plan`` is not the one that masks the model, or the model holds something that
            has no place in the format: a tensor without data, of a layout or dtype it does not know, or extra state.

    Example:
        >>> import tempfile
        >>> folder = save(nn.Linear(4, 2), tempfile.mkdtemp())
        >>> sorted(p.name for p in folder.iterdir())
        ['model.json', 'model.safetensors']
    """
    require_module(model)
    folder = Path(path)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"a model is saved to a folder, {folder} is a file; try a name of its own")
    active = active_plan(model)
    if active is not None and plan is not None and plan != active:
        raise InputError(f"asked to store {plan}, but the model is masked by {active}; unmask it, or leave plan out")
    contents, tensors = _contents(model, active or plan, masked=active is not None)
    folder.mkdir(parents=True, exist_ok=True)
    mark = uuid.uuid4().hex[:8]
    weights, description = folder / f".{layout.WEIGHTS}.{mark}", folder / f".{layout.DESCRIPTION}.{mark}"
    try:
        save_file(tensors, weights, metadata={"format": "pt"})
        stored = layout.Weights(bytes=weights.stat().st_size, sha256=layout.file_digest(weights))
        description.write_text(layout.Description(weights=stored, **contents).to_json(), encoding="utf-8")
        for file in (weights, description):
            _flush(file)
        _replace(folder, weights, description)
    finally:
        weights.unlink(missing_ok=True)
        description.unlink(missing_ok=True)
    return folder


def _contents(model: nn.Module, plan: Plan | None, *, masked: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The fields of the description but for the weights' digest, and the tensors of the safetensors file."""
    entries: dict[str, layout.Entry] = {}
    tied: dict[str, str] = {}
    empty: list[str] = []
    tensors: dict[str, Tensor] = {}
    first: dict[int, str] = {}
    memory: set[int] = set()
    _check_modules(model)
    places = layout.places(model)
    for name, place in sorted(places.items(), key=lambda item: item[1].kind == "derived"):
        if place.tensor is None:
            empty.append(name)
        elif id(place.tensor) in first:
            if place.kind != "derived":
                tied[name] = first[id(place.tensor)]
        else:
            first[id(place.tensor)] = name
            _check_tensor(name, place.tensor)
            parts = layout.encode(place.tensor)
            tensors.update((name + suffix, _unshared(part, memory)) for suffix, part in parts.items())
            entries[name] = layout.Entry(
                kind=place.kind,
                dtype=str(place.tensor.dtype).removeprefix("torch."),
                shape=list(place.tensor.shape),
                storage=next(kind for kind, suffixes in layout.SUFFIXES.items() if {*suffixes} == {*parts}),
                requires_grad=place.tensor.requires_grad,
            )
    later = {key: value for key, value in layout.rewritten(model).items() if value}
    contents = {
        "format": layout.FORMAT,
        "version": layout.VERSION if later else 1,
        "environment": {
            "topiarist": version("topiarist"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "tensors": entries,
        "tied": tied,
        "empty": empty,
        "attributes": layout.stored_attributes(model),
        "plan": None if plan is None else json.loads(plan.to_json()),
        "masked": masked,
        **later,
    }
    return contents, tensors


def _check_modules(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            raise InputError(
                f"{name or type(model).__name__} ({type(module).__name__}) keeps extra state beside its tensors, "
                "which cannot be stored without pickle; try to register it as a buffer"
            )


def _check_tensor(name: str, tensor: Tensor) -> None:
    if torch.nn.parameter.is_lazy(tensor) or tensor.is_meta:
        raise InputError(f"{name} has no data yet; try to run the model once, or to move it off the meta device")
    plain = type(tensor.detach()) is Tensor and tensor.layout == torch.strided
    if not plain or str(tensor.dtype).removeprefix("torch.") not in layout.DTYPES:
        raise InputError(
            f"{name} is a {type(tensor.detach()).__name__} of dtype {tensor.dtype} and layout {tensor.layout}; "
            f"the format holds dense tensors of {', '.join(layout.DTYPES)}"
        )


def _unshared(part: Tensor, memory: set[int]) -> Tensor:
    """safetensors refuses tensors that share memory, as views of one flat buffer do; ``memory`` is what is in use."""
    storage = part.untyped_storage()
    if storage.data_ptr() in memory or storage.nbytes() != part.numel() * part.element_size():
        part = part.clone()
    memory.add(part.untyped_storage().data_ptr())
    return part


def _flush(file: Path) -> None:
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


def _replace(folder: Path, weights: Path, description: Path) -> None:
    """Put both files in place so that the folder can be loaded, old or new, after a stop at any point.

    The old weights stay as `model.safetensors.previous` until the new description names the new weights.
    """
    current, previous = folder / layout.WEIGHTS, folder / layout.PREVIOUS
    if previous.exists() and _names(folder / layout.DESCRIPTION, previous):
        os.replace(previous, current)  # an earlier save broke off: the older weights are those that count
    if current.exists():
        os.replace(current, previous)
    os.replace(weights, current)
    os.replace(description, folder / layout.DESCRIPTION)
    previous.unlink(missing_ok=True)


def _names(description: Path, weights: Path) -> bool:
    try:
        expected = layout.Description.from_json(description.read_bytes()).weights.sha256
    except (OSError, FormatError):
        return False
    return expected == layout.file_digest(weights)
