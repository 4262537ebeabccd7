"""What a saved model looks like on disk; docs/format.md says it byte for byte.

A folder holds `model.safetensors` (the tensors) and `model.json` (everything else, and the digest of both). Neither
can name a class or a function: reading them yields tensors, integers and text.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from topiarist.errors import FormatError, InputError
from topiarist.graph.attributes import holder, integer_attributes
from topiarist.graph.bypass import Bypass, replace_module
from topiarist.graph.factored import Factored
from topiarist.graph.shortened import is_shortened, kept_places, shorten
from topiarist.held import held_tensors, put_tensor

FORMAT = "topiarist-model"
VERSION = 2  # the first with what _LATER names; descriptions without are of version 1
_LATER = ("bypassed", "factored", "shortened")
WEIGHTS = "model.safetensors"
PREVIOUS = "model.safetensors.previous"  # the old weights, while a save replaces them
DESCRIPTION = "model.json"
BITS, VALUES, SIGNS = ".__bits__", ".__values__", ".__signs__"
Storage = Literal["dense", "sparse", "sparse-signed"]
SUFFIXES: dict[Storage, tuple[str, ...]] = {
    "dense": ("",),
    "sparse": (BITS, VALUES),
    "sparse-signed": (BITS, VALUES, SIGNS),
}
_ENTRY = 128  # bytes that one more entry takes in the safetensors header, about

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2,
        torch.int64, torch.int32, torch.int16, torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8,
        torch.bool, torch.complex64,
    )
}  # fmt: skip
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

Size = Annotated[int, Field(ge=0, lt=2**63)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Entry(_Strict):
    """One stored tensor. ``derived``: a non-persistent buffer, or a tensor in an attribute or in what it holds."""

    kind: Literal["parameter", "buffer", "derived"]
    dtype: str
    shape: list[Size]
    storage: Storage
    requires_grad: bool


class Weights(_Strict):
    """The file that holds the tensors."""

    bytes: Size
    sha256: Sha256


class Description(_Strict):
    """The contents of `model.json`."""

    format: Literal["topiarist-model"]
    version: Literal[1, 2]
    environment: dict[str, str]
    weights: Weights
    tensors: dict[str, Entry]
    tied: dict[str, str]
    empty: list[str]
    attributes: dict[str, int]
    plan: dict[str, Any] | None
    masked: bool
    bypassed: dict[str, str] = {}
    factored: dict[str, Size] = {}
    shortened: dict[str, list[Size]] = {}

    def to_json(self) -> str:
        """The text of `model.json`, with its own digest as the last key."""
        raw = self.model_dump(exclude={key for key in _LATER if not getattr(self, key)})
        return json.dumps({**raw, "digest": digest(raw)}, indent=1)

    @classmethod
    def from_json(cls, text: bytes) -> Description:
        """Read `model.json`.

        Raises:
            FormatError: it is not a description of this version, or it is damaged.
        """
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{DESCRIPTION} is not JSON: {error}") from error
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            found = raw.get("format") if isinstance(raw, dict) else type(raw).__name__
            raise FormatError(f"{DESCRIPTION} is not topiarist's: asked for format {FORMAT!r}, found {found!r}")
        if raw.get("version") not in range(1, VERSION + 1):
            raise FormatError(
                f"{DESCRIPTION} has version {raw.get('version')!r}, this topiarist reads versions 1 to {VERSION}; "
                "try the release that wrote it, or a newer one"
            )
        if raw.pop("digest", None) != digest(raw):
            raise FormatError(f"{DESCRIPTION} is damaged: its digest does not fit its contents; save the model again")
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise FormatError(f"{DESCRIPTION} is damaged at {where}: {first['msg']}") from error


def digest(raw: dict[str, Any]) -> str:
    """SHA-256 over compact JSON with sorted keys."""
    return hashlib.sha256(json.dumps(raw, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            state.update(block)
    return state.hexdigest()


@dataclass(frozen=True)
class Place:
    """Where a model holds a tensor, or could: ``tensor`` is ``None`` where a slot is registered and empty."""

    kind: Literal["parameter", "buffer", "derived"]
    module: nn.Module
    name: str
    tensor: Tensor | None

    def put(self, tensor: Tensor | None) -> None:
        """Let the model hold another tensor here."""
        if self.kind != "derived" or tensor is None or self.name in self.module._buffers:
            setattr(self.module, self.name, tensor)
        else:
            put_tensor(self.module, self.name, tensor)


def places(model: nn.Module) -> dict[str, Place]:
    """Every place for a tensor in ``model``, by dotted name; a shared module's under each of its names."""
    return {
        f"{prefix}.{place.name}" if prefix else place.name: place
        for prefix, module in model.named_modules(remove_duplicate=False)
        for place in _own_places(module)
    }


def rewritten(model: nn.Module) -> dict[str, Any]:
    """What stands in ``model`` for modules that its class makes: by the key of the description, by name."""
    modules = dict(model.named_modules())
    return {
        "bypassed": {name: m.form for name, m in modules.items() if isinstance(m, Bypass)},
        "factored": {name: m.rank for name, m in modules.items() if isinstance(m, Factored)},
        "shortened": {
            n: kept_places(m) for n, m in modules.items() if isinstance(m, nn.ModuleList) and is_shortened(m)
        },
    }


def rewrite(model: nn.Module, description: Description) -> None:
    """Put the same into a model that its class has made.

    Raises:
        FormatError: it has no such modules.
    """
    try:
        for name, form in description.bypassed.items():
            replace_module(model, name, partial(Bypass.of, form=form))
        for name, rank in description.factored.items():
            replace_module(model, name, partial(Factored.empty, rank=rank))
        for name, places in sorted(description.shortened.items(), key=lambda item: len(item[0])):  # outer lists first
            shorten(model, name, places)
    except InputError as error:
        raise FormatError(f"{DESCRIPTION} does not fit the model: {error}") from error


def _own_places(module: nn.Module) -> Iterator[Place]:
    for name, parameter in module._parameters.items():
        yield Place("parameter", module, name, parameter)
    for name, buffer in module._buffers.items():
        yield Place("derived" if name in module._non_persistent_buffers_set else "buffer", module, name, buffer)
    for path, tensor in held_tensors(module).items():
        is_stored = path in module.__dict__ or (type(tensor) is Tensor and tensor.layout == torch.strided)
        if tensor.grad_fn is None and is_stored:  # what else a list holds is as the class makes it
            yield Place("derived", module, path, tensor)


def stored_attributes(model: nn.Module) -> dict[str, int]:
    """The integer attributes that a file keeps: all but the private ones of torch's own layers."""
    return {path: value for path, value in integer_attributes(model).items() if not _is_private(*holder(model, path))}


def _is_private(module: nn.Module, name: str) -> bool:
    return name.startswith("_") and type(module).__module__.startswith("torch.")


def encode(tensor: Tensor) -> dict[str, Tensor]:
    """The tensors that stand for ``tensor`` in the file, by suffix: itself (``""``), or bits and values.

    The second form is taken where it is smaller. Bit i of the row-major order (the highest bit of a byte first) is set
    where an entry is not zero, and the values are those entries in the same order. Where some of the zeros are −0.0 (a
    negative weight times a mask), one more bit per zero says which. Nothing is rounded: every zero and every NaN comes
    back as it was.

    Example:
        >>> {k: v.tolist() for k, v in encode(torch.tensor([0.0] * 200 + [1.5])).items()}[".__values__"]
        [1.5]
    """
    tensor = tensor.detach().to("cpu").resolve_conj().resolve_neg().contiguous()
    flat = tensor.view(-1).view(_INTEGERS[tensor.element_size()])
    kept = (flat & _magnitude(flat) if tensor.is_floating_point() else flat) != 0
    negative = flat[~kept] != 0
    parts = {BITS: _packed(kept), VALUES: flat[kept].view(tensor.dtype)}
    if negative.any():
        parts[SIGNS] = _packed(negative)
    if sum(part.nbytes for part in parts.values()) + (len(parts) - 1) * _ENTRY >= tensor.nbytes:
        return {"": tensor}
    return parts


def num_bytes(num: int, num_nonzero: int, itemsize: int) -> int:
    """How many bytes `encode` makes of a tensor of ``num`` entries whose zeros are all +0.0.

    Example:
        >>> num_bytes(201, 1, 4), num_bytes(8, 1, 4)
        (30, 32)
    """
    sparse = (num + 7) // 8 + num_nonzero * itemsize
    return sparse if sparse + _ENTRY < num * itemsize else num * itemsize


def decode(bits: Tensor, values: Tensor, signs: Tensor | None, shape: list[int], dtype: torch.dtype) -> Tensor:
    """The tensor that `encode` stored as ``bits``, ``values`` and perhaps ``signs``.

    Raises:
        FormatError: they do not fit each other, ``shape`` or ``dtype``.
    """
    if values.ndim != 1 or values.dtype != dtype:
        raise FormatError(f"values are {values.dtype} of shape {tuple(values.shape)}, the tensor is {dtype}")
    num = math.prod(shape)
    kept = _unpacked(bits, num)
    if int(kept.sum()) != values.numel():
        raise FormatError(f"{int(kept.sum())} bits are set for {values.numel()} values")
    flat = torch.zeros(num, dtype=_INTEGERS[values.element_size()])
    flat[kept] = values.view(flat.dtype)
    if signs is not None:
        negative = _unpacked(signs, num - values.numel())
        flat[~kept] = torch.where(negative, ~_magnitude(flat), 0).to(flat.dtype)
    return flat.view(dtype).reshape(shape)


def _magnitude(flat: Tensor) -> int:
    """All bits but the highest, the sign of a floating-point number."""
    return 0x7F if flat.dtype == torch.uint8 else torch.iinfo(flat.dtype).max


def _packed(bits: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(bits.numpy()))


def _unpacked(packed: Tensor, num: int) -> Tensor:
    if packed.dtype != torch.uint8 or packed.ndim != 1 or packed.numel() != (num + 7) // 8:
        raise FormatError(f"{tuple(packed.shape)} bytes of bits are stored where {num} bits are described")
    bits = np.unpackbits(packed.numpy())
    if bits[num:].any():
        raise FormatError("bits are set behind the last entry")
    return torch.from_numpy(bits[:num]).to(torch.bool)
