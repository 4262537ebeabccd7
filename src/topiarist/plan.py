"""The frozen values that every room speaks: what is asked (`Budget`), what can go (`Units`), what goes (`Plan`)."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from topiarist.errors import FormatError, InputError, nearest

PLAN_FORMAT = "topiarist-plan"
PLAN_VERSION = 2  # the first that knows zeroed and bypassed; plans without them are of version 1
_LATER = ("zeroed", "bypassed")  # parts of the decision that only some structures have: left out where there are none
_LONGEST_INDEX_LIST = 4096  # longer selections are stored as packed bits


@dataclass(frozen=True)
class Budget:
    """The target of a pruning run, in exactly one unit.

    ``sparsity`` is the fraction of prunable units *removed*; ``compression`` is original size / remaining size over
    all parameters (Blalock et al. 2020); ``macs``, ``params`` and ``bytes`` are the fraction that *remains*.

    Raises:
        InputError: not exactly one unit is given, or its value is outside its range.

    Example:
        >>> Budget(macs=0.5)
        Budget(macs=0.5)  # keeps 0.5 of the macs
        >>> Budget(compression=4).removed
        0.75
    """

    sparsity: float | None = None
    compression: float | None = None
    macs: float | None = None
    params: float | None = None
    bytes: float | None = None

    def __post_init__(self) -> None:
        given = {k: v for k, v in self._values().items() if v is not None}
        if len(given) != 1:
            raise InputError(
                f"a budget has exactly one unit, got {given or 'none'}; try Budget(sparsity=0.9) or Budget(macs=0.5)"
            )
        low, high = (1.0, math.inf) if self.unit == "compression" else (0.0, 1.0)
        if not (low <= self.value <= high and math.isfinite(self.value)):
            raise InputError(f"{self.unit} must lie in [{low:g}, {high:g}] and be finite, got {self.value!r}")

    def _values(self) -> dict[str, float | None]:
        return {
            "sparsity": self.sparsity,
            "compression": self.compression,
            "macs": self.macs,
            "params": self.params,
            "bytes": self.bytes,
        }

    @property
    def unit(self) -> str:
        """The unit that is set: ``"sparsity"``, ``"compression"``, ``"macs"``, ``"params"`` or ``"bytes"``."""
        return next(k for k, v in self._values().items() if v is not None)

    @property
    def value(self) -> float:
        """The number, in the budget's own unit."""
        return float(next(v for v in self._values().values() if v is not None))

    @property
    def removed(self) -> float:
        """The fraction to remove, whatever the unit: sparsity s, 1 − 1/compression, or 1 − fraction kept."""
        if self.unit == "sparsity":
            return self.value
        return 1 - 1 / self.value if self.unit == "compression" else 1 - self.value

    def with_removed(self, removed: float) -> Budget:
        """The same unit with another fraction removed, as a schedule asks for on its way to the target."""
        if self.unit == "sparsity":
            return Budget(sparsity=removed)
        if self.unit == "compression":
            return Budget(compression=1 / (1 - removed))
        return Budget(**{self.unit: 1 - removed})

    def __repr__(self) -> str:
        meaning = {
            "sparsity": f"removes {self.value:g} of the prunable units",
            "compression": "original size / remaining size",
        }.get(self.unit, f"keeps {self.value:g} of the {self.unit}")
        return f"Budget({self.unit}={self.value:g})  # {meaning}"


@dataclass(frozen=True, eq=False)
class Member:
    """Where one set of units lives in one tensor of the model.

    ``dim`` is the tensor dimension that the units index, ``unit`` maps each position along it to a unit
    (int64 of shape ``(size of dim,)``, −1 where no unit of this set lives). Where units are entries, ``dim`` is
    ``None`` and ``unit`` maps the entries in row-major order (``(num entries,)``), or is ``None`` as well where every
    single entry is a unit of its own. A ``unit`` without dimensions says that the whole tensor belongs to that one.
    """

    tensor: str
    dim: int | None = None
    unit: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Units:
    """A set of units that compete with one another: the weights of a tensor, the channels of an axis, the heads.

    ``name`` is the parameter (weights) or axis (channels, heads); ``kind`` is the class name of the module that
    carries it, for allocation by layer type; ``layer`` the module's own name; ``minimum`` how many must stay.
    Where one unit takes several indices, of one axis or of several at once, ``step`` says how many of each, ``first``
    how many the first unit takes (the last one takes what is left), ``members`` is empty, and ``assigned`` maps the
    indices of each axis to units (int64 of shape ``(size,)``), once they are ranked. Where units are modules,
    ``modules`` names them.
    """

    name: str
    num: int
    members: tuple[Member, ...]
    layer: str = ""
    kind: str = ""
    minimum: int = 0
    step: tuple[tuple[str, int], ...] = ()
    first: tuple[int, ...] = ()
    assigned: tuple[tuple[str, Tensor], ...] = ()
    modules: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Slice:
    """Positions that leave one dimension of a tensor: ``removed`` is bool of shape ``(size of dim,)``."""

    dim: int
    removed: Tensor


@dataclass(frozen=True, eq=False)
class Plan:
    """Which units go: a frozen, comparable value with a digest, stored as JSON.

    ``removed`` maps each set of units to a bool tensor of shape ``(num units,)``, True where the unit goes.
    ``zeroed`` maps parameters to the entries that become zero, in row-major order, for structures whose units are sets
    of entries (for ``structure="weight"`` the units are the entries, and ``removed`` says it). ``slices`` maps tensor
    names to the positions that leave their dimensions (empty for structures that zero entries); ``attributes`` maps
    dotted paths (``"blocks.0.attn.num_heads"``) to the sizes that follow. ``inexact`` names the cut axes for which
    removing cannot equal zeroing, with the operator that makes it so. ``bypassed`` maps modules that go as a whole to
    the form of what they returned (`topiarist.graph.bypass`). ``requested`` and ``achieved`` are in the words
    of `Budget`, and in units and fractions.

    Example:
        >>> plan = Plan("weight", {"weight": torch.tensor([True, False])})
        >>> Plan.from_json(plan.to_json()) == plan
        True
    """

    structure: str
    removed: Mapping[str, Tensor]
    slices: Mapping[str, tuple[Slice, ...]] = field(default_factory=dict)
    attributes: Mapping[str, int] = field(default_factory=dict)
    inexact: Mapping[str, str] = field(default_factory=dict)
    requested: Mapping[str, float] = field(default_factory=dict)
    achieved: Mapping[str, float] = field(default_factory=dict)
    zeroed: Mapping[str, Tensor] = field(default_factory=dict)
    bypassed: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("removed", "slices", "attributes", "inexact", "requested", "achieved", *_LATER):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))

    @property
    def num_removed(self) -> int:
        """How many units go."""
        return sum(int(r.sum()) for r in self.removed.values())

    @property
    def num_units(self) -> int:
        """How many units there were to choose from."""
        return sum(r.numel() for r in self.removed.values())

    @property
    def digest(self) -> str:
        """SHA-256 over the decision (structure, removed units, slices, attributes, …), in hexadecimal."""
        said = self._json()
        decision = {k: said[k] for k in ("structure", "removed", "slices", "attributes", *_LATER) if k in said}
        return hashlib.sha256(json.dumps(decision, sort_keys=True).encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Plan({self.structure}, {self.num_removed} of {self.num_units} units, digest {self.digest[:12]})"

    def masks(self, model: nn.Module) -> dict[str, Tensor]:
        """Per parameter of ``model``, a bool tensor of the parameter's shape, True where an entry is removed.

        Raises:
            InputError: the plan names a tensor that the model lacks, or one of another size.
        """
        parameters = dict(model.named_parameters(remove_duplicate=False))
        others = _buffers_and_attributes(model)
        masks: dict[str, Tensor] = {}
        for name, removed in (self.removed if self.structure == "weight" else self.zeroed).items():
            parameter = _find(name, parameters)
            if parameter.numel() != removed.numel():
                raise InputError(f"{name} has {parameter.numel()} entries, the plan was made for {removed.numel()}")
            masks[name] = removed.view(parameter.shape).to(parameter.device)
        for name, slices in self.slices.items():
            if name in others:
                continue
            parameter = _find(name, parameters)
            mask = torch.zeros(parameter.shape, dtype=torch.bool, device=parameter.device)
            for piece in slices:
                if not 0 <= piece.dim < parameter.ndim or parameter.shape[piece.dim] != piece.removed.numel():
                    raise InputError(
                        f"{name} has shape {tuple(parameter.shape)}, the plan was made for size "
                        f"{piece.removed.numel()} in dimension {piece.dim}"
                    )
                shape = [1] * parameter.ndim
                shape[piece.dim] = -1
                mask |= piece.removed.to(parameter.device).view(shape)
            masks[name] = mask
        return masks

    def to_json(self) -> str:
        """The plan as JSON text; `from_json` reads it back to an equal plan."""
        return json.dumps(self._json(), indent=1)

    def _json(self) -> dict[str, Any]:
        return {
            "format": PLAN_FORMAT,
            "version": PLAN_VERSION if any(getattr(self, part) for part in _LATER) else 1,
            "structure": self.structure,
            "removed": {k: _encode(v) for k, v in self.removed.items()},
            "slices": {k: [{"dim": s.dim, **_encode(s.removed)} for s in v] for k, v in self.slices.items()},
            "attributes": dict(self.attributes),
            "inexact": dict(self.inexact),
            "requested": dict(self.requested),
            "achieved": dict(self.achieved),
            **{k: v for k, v in self._later().items() if v},
        }

    def _later(self) -> dict[str, Any]:
        """The parts that only some structures have, as JSON."""
        return {"zeroed": {k: _encode(v) for k, v in self.zeroed.items()}, "bypassed": dict(self.bypassed)}

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan back from `to_json`.

        Raises:
            FormatError: the text is not a plan, is of a newer version, or is damaged.
        """
        try:
            raw = json.loads(text)
            if raw.get("format") != PLAN_FORMAT or raw.get("version") not in range(1, PLAN_VERSION + 1):
                raise FormatError(
                    f"not a plan of version {PLAN_VERSION} or lower: "
                    f"format {raw.get('format')!r}, version {raw.get('version')!r}"
                )
            return cls(
                structure=str(raw["structure"]),
                removed={k: _decode(v) for k, v in raw["removed"].items()},
                slices={k: tuple(Slice(int(s["dim"]), _decode(s)) for s in v) for k, v in raw["slices"].items()},
                attributes={str(k): int(v) for k, v in raw["attributes"].items()},
                inexact=raw["inexact"],
                requested=raw["requested"],
                achieved=raw["achieved"],
                zeroed={k: _decode(v) for k, v in raw.get("zeroed", {}).items()},
                bypassed={str(k): str(v) for k, v in raw.get("bypassed", {}).items()},
            )
        except FormatError:
            raise
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise FormatError(f"damaged plan: {error}") from error
        except zlib.error as error:
            raise FormatError(f"damaged plan: {error}") from error


def _buffers_and_attributes(model: nn.Module) -> set[str]:
    """The names of the tensors that a plan may cut but no mask zeroes."""
    names = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    for module_name, module in model.named_modules():
        held = [name for name, value in module.__dict__.items() if isinstance(value, Tensor)]
        names.update(f"{module_name}.{name}" if module_name else name for name in held)
    return names


def _find(name: str, tensors: Mapping[str, Tensor]) -> Tensor:
    if name not in tensors:
        raise InputError(f"the plan names {name!r}, which the model does not have ({nearest(name, tensors)})")
    return tensors[name]


def _encode(removed: Tensor) -> dict[str, Any]:
    if removed.numel() <= _LONGEST_INDEX_LIST:
        return {"size": removed.numel(), "indices": removed.nonzero().flatten().tolist()}
    bits = np.packbits(removed.cpu().numpy())
    return {"size": removed.numel(), "bits": base64.b64encode(zlib.compress(bits.tobytes(), 6)).decode()}


def _decode(raw: Mapping[str, Any]) -> Tensor:
    size = raw["size"]
    if not _is_count(size):
        raise FormatError(f"damaged plan: {size!r} is no number of units")
    if "indices" in raw:
        indices = raw["indices"]
        if size > _LONGEST_INDEX_LIST or not all(_is_count(i) and i < size for i in indices):
            raise FormatError(f"damaged plan: indices of {size} units must lie in [0, {size}), got {indices!r:.80}")
        removed = torch.zeros(size, dtype=torch.bool)
        removed[torch.tensor(indices, dtype=torch.long)] = True
        return removed
    limit = (size + 7) // 8
    stream = zlib.decompressobj()
    packed = stream.decompress(base64.b64decode(raw["bits"], validate=True), limit + 1)
    if len(packed) != limit or not stream.eof or stream.unused_data:
        raise FormatError(f"damaged plan: {len(packed)} bytes of bits for {size} units")
    return torch.from_numpy(np.unpackbits(np.frombuffer(packed, np.uint8), count=size).astype(bool))


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0
