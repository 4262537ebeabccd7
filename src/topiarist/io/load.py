"""Read a model back into an instance of the user's own class; nothing in the files is executed."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from topiarist.errors import FormatError, InputError, nearest
from topiarist.graph import attributes
from topiarist.graph.heads import where_they_must
from topiarist.io import format as layout
from topiarist.mask.attach import mask
from topiarist.plan import Plan
from topiarist.strides import laid_out


def load(path: str | os.PathLike[str], *, build: Callable[[], nn.Module]) -> nn.Module:
    """The model that `save` wrote to the folder ``path``, as an instance that ``build`` makes.

    ``build`` is the model's own class, or a function that makes the original (unpruned) model. Its integer attributes
    are set and its tensors replaced by the stored ones, whatever their sizes, with the stored dtype, on the device
    where ``build`` puts them and in the order of dimensions that it gives them (channels last stay last). What is tied
    in the file is tied in the model. Non-persistent buffers and plain tensor attributes are left as the class makes
    them where their shape is the stored one. A model that was masked when it was saved is masked again; what its mask
    had set aside is zero after `unmask`.

    Raises:
        FormatError: the folder or a file is missing, damaged, not topiarist's or of another version, or does not fit
            the model that ``build`` makes.
        InputError: ``build`` does not return a module.

    Example:
        >>> import tempfile
        >>> from topiarist.io.save import save
        >>> folder = save(nn.Linear(4, 2), tempfile.mkdtemp())
        >>> load(folder, build=lambda: nn.Linear(8, 8))
        Linear(in_features=4, out_features=2, bias=True)
    """
    description, file = _read(Path(path))
    plan = _plan(description)
    tensors = _read_tensors(file, description)
    model = _built(build)
    if not isinstance(model, nn.Module):
        raise InputError(f"build must return a torch.nn.Module, got {type(model).__name__}; try build=MyNet")
    layout.rewrite(model, description)
    places = layout.places(model)
    _check_fit(description, places, type(model).__name__)
    _set_attributes(model, description.attributes)
    _set_tensors(places, description, tensors)
    model = where_they_must(model)
    if description.masked and plan is not None:
        try:
            mask(model, plan)
        except InputError as error:
            raise FormatError(f"the stored plan does not fit the stored model: {error}") from error
    return model


def _built(build: Callable[[], nn.Module]) -> nn.Module:
    """What ``build`` makes."""
    if isinstance(build, nn.Module) or not callable(build):
        raise InputError(
            f"build makes the original model when it is called, got {type(build).__name__}; try build=MyNet"
        )
    try:
        inspect.signature(build).bind()
    except TypeError as error:
        name = getattr(build, "__name__", type(build).__name__)
        raise InputError(
            f"build is called without arguments, and {name} takes some ({error}); try build=lambda: {name}(…)"
        ) from error
    except ValueError:
        pass  # what is written in C may have no signature
    return build()


def load_plan(path: str | os.PathLike[str]) -> Plan | None:
    """The plan that was stored with the model in the folder ``path``, if one was.

    Raises:
        FormatError: as `load`.
    """
    return _plan(_read(Path(path))[0])


def _plan(description: layout.Description) -> Plan | None:
    if description.plan is None:
        if description.masked:
            raise FormatError(f"{layout.DESCRIPTION} is damaged: the model is masked, and no plan is there")
        return None
    try:
        return Plan.from_json(json.dumps(description.plan))
    except (RuntimeError, OverflowError) as error:  # torch cannot make a tensor of the size that is claimed
        raise FormatError(f"damaged plan: {error}") from error


def _read(folder: Path) -> tuple[layout.Description, Path]:
    """The description, and the weights file that it names by digest."""
    try:
        text = (folder / layout.DESCRIPTION).read_bytes()
    except OSError as error:
        raise FormatError(f"no saved model at {folder}: {layout.DESCRIPTION} cannot be read ({error})") from error
    description = layout.Description.from_json(text)
    files = [folder / layout.WEIGHTS, folder / layout.PREVIOUS]  # the second only after a save that broke off
    sizes = {file: file.stat().st_size for file in files if file.is_file()}
    if not sizes:
        raise FormatError(f"{files[0]} is missing")
    for file, size in sizes.items():
        if size == description.weights.bytes and layout.file_digest(file) == description.weights.sha256:
            return description, file
    raise FormatError(
        f"{files[0]} is damaged or belongs to another model: {layout.DESCRIPTION} names {description.weights.bytes} "
        f"bytes with digest {description.weights.sha256[:12]}…, found are {[*sizes.values()]}; copy both files again"
    )


def _read_tensors(file: Path, description: layout.Description) -> dict[str, Tensor]:
    suffixes = layout.SUFFIXES
    expected = {name + suffix for name, entry in description.tensors.items() for suffix in suffixes[entry.storage]}
    try:
        with safe_open(file, framework="pt") as stored:
            found = set(stored.keys())
            if found != expected:
                raise FormatError(f"{layout.WEIGHTS} lacks {sorted(expected - found)}, has {sorted(found - expected)}")
            return {
                name: _tensor(name, entry, [stored.get_tensor(name + s) for s in suffixes[entry.storage]])
                for name, entry in description.tensors.items()
            }
    except (SafetensorError, RuntimeError, TypeError) as error:
        raise FormatError(f"{layout.WEIGHTS} cannot be read: {error}") from error


def _tensor(name: str, entry: layout.Entry, parts: list[Tensor]) -> Tensor:
    dtype = layout.DTYPES.get(entry.dtype)
    if dtype is None:
        raise FormatError(f"{name} is described as {entry.dtype!r}; known are {', '.join(layout.DTYPES)}")
    if entry.storage == "dense":
        tensor = parts[0].clone()
    else:
        tensor = layout.decode(parts[0], parts[1], parts[2] if len(parts) > 2 else None, entry.shape, dtype)
    if list(tensor.shape) != entry.shape or tensor.dtype != dtype:
        raise FormatError(
            f"{name} is described as {entry.dtype} of shape {tuple(entry.shape)}, "
            f"stored is {tensor.dtype} of shape {tuple(tensor.shape)}"
        )
    if entry.requires_grad and not (tensor.is_floating_point() or tensor.is_complex()):
        raise FormatError(f"{name} is described as {entry.dtype} that requires a gradient, which no integer can")
    return tensor


def _check_fit(description: layout.Description, places: dict[str, layout.Place], kind: str) -> None:
    entries: dict[str, layout.Entry | None] = {**description.tensors}
    for alias, name in [*((name, None) for name in description.empty), *description.tied.items()]:
        entry = None if name is None else description.tensors.get(name)
        if alias in entries or (name is not None and (entry is None or entry.kind == "derived")):
            raise FormatError(f"{layout.DESCRIPTION} is damaged: it says twice, or not at all, what {alias!r} holds")
        entries[alias] = entry
    for name, entry in entries.items():
        if name in places:
            _check_place(name, entry, places[name], kind)
        elif entry is None or entry.kind != "derived":
            raise FormatError(f"the file holds {name!r}, which {kind} does not have ({nearest(name, places)})")
    for name, place in places.items():
        if name not in entries and place.tensor is not None and place.kind != "derived":
            raise FormatError(f"{kind} has {name!r}, which the file lacks ({nearest(name, entries)})")


def _check_place(name: str, entry: layout.Entry | None, place: layout.Place, kind: str) -> None:
    if entry is None:
        return
    if entry.kind != place.kind:
        raise FormatError(f"{name} is a {entry.kind} tensor in the file and a {place.kind} tensor in {kind}")
    if entry.kind != "derived" and place.tensor is not None and place.tensor.ndim != len(entry.shape):
        raise FormatError(
            f"{name} has shape {tuple(entry.shape)} in the file and {tuple(place.tensor.shape)} in {kind}: "
            "the number of dimensions differs; try the class that the model was saved from"
        )


def _set_attributes(model: nn.Module, stored: dict[str, int]) -> None:
    own = attributes.integer_attributes(model)
    for path in stored:
        if path not in own:
            raise FormatError(
                f"the file sets the integer {path!r}, which a fresh {type(model).__name__} does not hold "
                f"({nearest(path, own)}); where the model sets it as it runs, let build() run it once"
            )
    attributes.update(model, {path: value for path, value in stored.items() if own[path] != value})


def _set_tensors(places: dict[str, layout.Place], description: layout.Description, tensors: dict[str, Tensor]) -> None:
    held: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, entry in description.tensors.items():
        fresh = places[name].tensor if name in places else None
        if entry.kind != "derived":
            held[name] = _held(None if id(fresh) in taken else fresh, tensors[name], entry)
            taken.add(id(held[name]))
        elif fresh is not None and (fresh.shape != tensors[name].shape or fresh.is_meta):
            made = tensors[name].to("cpu" if fresh.is_meta else fresh.device)
            same = (other for other, place in places.items() if place.kind == "derived" and place.tensor is fresh)
            held.update(dict.fromkeys((name, *same), made))  # stored once, whoever holds it
    held.update((alias, held[name]) for alias, name in description.tied.items())
    for name, tensor in held.items():
        if places[name].tensor is not tensor:
            places[name].put(tensor)
    for name in description.empty:
        places[name].put(None)


def _held(fresh: Tensor | None, tensor: Tensor, entry: layout.Entry) -> Tensor:
    """``tensor`` in the very object that the model already holds, so that whoever else refers to it sees it too."""
    if fresh is not None and not fresh.is_meta:
        fresh.grad = None
        fresh.data = laid_out(tensor.to(fresh.device), fresh)
        return fresh.requires_grad_(entry.requires_grad)
    return nn.Parameter(tensor, entry.requires_grad) if entry.kind == "parameter" else tensor
