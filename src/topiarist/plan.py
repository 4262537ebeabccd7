"""The frozen values that every room speaks: what is asked (`Budget`), what can go (`Units`), what goes (`Plan`)."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import numbers
import zlib
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from topiarist.errors import FormatError, InputError, nearest
from topiarist.held import held_tensors

PLAN_FORMAT = "topiarist-plan"
PLAN_VERSION = 3  # the first that knows rescaled and is_zeroed; with nothing of _LATER a plan is of version 1, else 2
_LATER = (
    "zeroed",
    "bypassed",
    "bases",
    "shortened",
    "rescaled",
)  # parts of the decision that only some structures have: left out where there are none
_FLOATS = {str(d).removeprefix("torch."): d for d in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}
_LONGEST_INDEX_LIST = 4096  # longer selections are stored as packed bits


EXECUTORS = ("eager", "compiled", "onnxruntime")
_FRACTIONS = ("macs", "params", "bytes", "peak_memory")  # of what the whole model has, that which remains


@dataclass(frozen=True)
class Budget:
    """The target of a pruning run, in exactly one unit.

    ``sparsity`` is the fraction of prunable units *removed*; ``compression`` is original size / remaining size over
    all parameters (Blalock et al. 2020); ``macs``, ``params``, ``bytes`` and ``peak_memory`` (of the activations of one
    forward pass, `topiarist.measure.peak_activation_bytes`) are the fraction that *remains*. ``latency_ms`` is an
    absolute ceiling on the milliseconds of one forward pass on ``device`` (that of the model unless given), for
    ``batch`` examples (those of the example inputs unless given), run by ``executor``: ``"eager"``, ``"compiled"``
    (torch.compile) or ``"onnxruntime"``. ``dense_ms`` is what the whole model takes there; it is measured where it is
    not given, and turns the ceiling into a fraction.

    Raises:
        InputError: not exactly one unit is given, its value is outside its range, or the executor is not known.

    Example:
        >>> Budget(macs=0.5)
        Budget(macs=0.5)  # keeps 0.5 of the macs
        >>> Budget(compression=4).removed
        0.75
        >>> Budget(latency_ms=3.5, batch=64)
        Budget(latency_ms=3.5, batch=64)  # at most 3.5 ms a call, eager
    """

    sparsity: float | None = None
    compression: float | None = None
    macs: float | None = None
    params: float | None = None
    bytes: float | None = None
    peak_memory: float | None = None
    latency_ms: float | None = None
    _: KW_ONLY
    device: str | None = None
    batch: int | None = None
    executor: str = "eager"
    dense_ms: float | None = None

    def __post_init__(self) -> None:
        given = {k: v for k, v in self._values().items() if v is not None}
        if len(given) != 1:
            raise InputError(
                f"a budget has exactly one unit, got {given or 'none'}; try Budget(sparsity=0.9) or Budget(macs=0.5)"
            )
        number = given[self.unit]
        if isinstance(number, bool) or not isinstance(number, numbers.Real):
            raise InputError(f"{self.unit} is a number, got {type(number).__name__} {number!r:.60}; try 0.5")
        low, high = {"compression": (1.0, math.inf), "latency_ms": (0.0, math.inf)}.get(self.unit, (0.0, 1.0))
        if not (low <= self.value <= high and math.isfinite(self.value)):
            raise InputError(f"{self.unit} must lie in [{low:g}, {high:g}] and be finite, got {self.value!r}")
        if self.executor not in EXECUTORS:
            raise InputError(f"no executor is called {self.executor!r} ({nearest(self.executor, EXECUTORS)})")
        if self.unit != "latency_ms" and self._conditions():
            said = ", ".join(self._conditions())
            raise InputError(f"{said} says how latency_ms is measured, the budget is one of {self.unit}")
        if self.batch is not None and self.batch < 1:
            raise InputError(f"a batch holds 1 example or more, got {self.batch!r}")

    def _values(self) -> dict[str, float | None]:
        return {
            "sparsity": self.sparsity,
            "compression": self.compression,
            **{unit: getattr(self, unit) for unit in _FRACTIONS},
            "latency_ms": self.latency_ms,
        }

    def _conditions(self) -> dict[str, object]:
        """What is said of how a latency is measured."""
        found: dict[str, object] = {"device": self.device, "batch": self.batch, "dense_ms": self.dense_ms}
        given = {name: value for name, value in found.items() if value is not None}
        return given if self.executor == "eager" else {**given, "executor": self.executor}

    @property
    def unit(self) -> str:
        """The unit that is set: ``"sparsity"``, ``"compression"``, ``"macs"``, ``"params"``, ``"bytes"``,
        ``"peak_memory"`` or ``"latency_ms"``."""
        return next(k for k, v in self._values().items() if v is not None)

    @property
    def value(self) -> float:
        """The number, in the budget's own unit."""
        return float(next(v for v in self._values().values() if v is not None))

    @property
    def removed(self) -> float:
        """The fraction to remove, whatever the unit: sparsity s, 1 − 1/compression, or 1 − fraction kept."""
        return max(0.0, self.removed_at(self.value))

    def removed_at(self, value: float) -> float:
        """The fraction that is removed where the budget's unit has this value.

        Raises:
            InputError: of a latency, where it is not known what the whole model takes.

        Example:
            >>> Budget(macs=0.5).removed_at(0.75), Budget(latency_ms=1, dense_ms=4).removed_at(3)
            (0.25, 0.25)
        """
        if self.unit == "sparsity":
            return value
        if self.unit == "compression":
            return 1 - 1 / value
        return 1 - value / self._whole()

    def with_removed(self, removed: float) -> Budget:
        """The same unit with another fraction removed, as a schedule asks for on its way to the target."""
        if self.unit == "sparsity":
            return Budget(sparsity=removed)
        if self.unit == "compression":
            return Budget(compression=1 / (1 - removed))
        if removed <= 0:  # a ceiling that the whole model is below stays as high as it is
            return replace(self, **{self.unit: max(self.value, self._whole())})  # type: ignore[arg-type]
        return replace(self, **{self.unit: (1 - removed) * self._whole()})  # type: ignore[arg-type]

    def _whole(self) -> float:
        if self.unit != "latency_ms":
            return 1.0
        if self.dense_ms is None:
            raise InputError("a latency is no fraction before the whole model is timed; give dense_ms to make it one")
        return self.dense_ms

    def __repr__(self) -> str:
        meaning = {
            "sparsity": f"removes {self.value:g} of the prunable units",
            "compression": "original size / remaining size",
            "latency_ms": f"at most {self.value:g} ms a call, {self.executor}",
        }.get(self.unit, f"keeps {self.value:g} of the {self.unit.replace('_', ' ')}")
        said = {k: f"{v:g}" if isinstance(v, float) else repr(v) for k, v in self._conditions().items()}
        arguments = ", ".join(f"{k}={v}" for k, v in {self.unit: f"{self.value:g}", **said}.items())
        return f"Budget({arguments})  # {meaning}"


@dataclass(frozen=True, eq=False)
class Member:
    """Where one set of units lives in one tensor of the model.

    ``dim`` is the tensor dimension that the units index, ``unit`` maps each position along it to a unit
    (int64 of shape ``(size of dim,)``, −1 where no unit of this set lives). Where units are entries, ``dim`` is
    ``None`` and ``unit`` maps the entries in row-major order (``(num entries,)``), or is ``None`` as well where every
    single entry is a unit of its own; a ``unit`` without dimensions says that the whole tensor belongs to that one.
    ``side`` is ``"in"`` where activations are multiplied by the tensor and summed over ``dim``: the tensor consumes the
    units; ``"out"`` where they are summed over another dimension: the tensor makes the units; ``""`` where neither:
    biases, norms, tables. Where units are no positions, ``view(weight, tensor)`` says what they have in a tensor of the
    shape of the weight (itself, or its gradient): ``(num units, elements)``.
    """

    tensor: str
    dim: int | None = None
    unit: Tensor | None = None
    side: Literal["in", "out", ""] = ""
    view: Callable[[Tensor, Tensor], Tensor] | None = None


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
    """Positions that leave one dimension of a tensor: ``removed`` is bool of shape ``(size of dim,)``.

    ``is_zeroed`` says whether they are zero while the plan is a mask: not where the code has no value at zero, as that
    of a weight norm has none for a direction v, whose scale g is zero instead.
    """

    dim: int
    removed: Tensor
    is_zeroed: bool = True


@dataclass(frozen=True, eq=False)
class Scale:
    """Entries of a tensor that are multiplied by ``factor``: those at the positions ``within`` says, by dimension (bool
    of shape ``(size of dim,)``); all along every other dimension."""

    factor: float
    within: tuple[tuple[int, Tensor], ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """Which units go: a frozen, comparable value with a digest, stored as JSON.

    ``removed`` maps each set of units to a bool tensor of shape ``(num units,)``, True where the unit goes.
    ``zeroed`` maps parameters to the entries that become zero, in row-major order, for structures whose units are sets
    of entries (for ``structure="weight"`` the units are the entries, and ``removed`` says it). ``slices`` maps tensor
    names to the positions that leave their dimensions (empty for structures that zero entries); ``attributes`` maps
    dotted paths (``"blocks.0.attn.num_heads"``) to the sizes that follow. ``inexact`` names the cut axes for which
    removing cannot equal zeroing, with the operator that makes it so. ``bypassed`` maps modules that go as a whole to
    the form of what they returned (`topiarist.graph.bypass`). ``bases`` maps weights to the columns on whose span they
    are projected, (outputs, rank), and two layers stand for the one (`topiarist.graph.factored`). ``shortened`` maps
    module lists to the entries that leave them, bool (num entries,); names and paths of all other parts are those of
    before they have left. ``rescaled`` maps parameters to entries that are multiplied by a factor, since the code
    computes numbers from sizes that shrink (`topiarist.graph.folds`): what is masked is not, what is cut is.
    ``requested`` and ``achieved`` are in the words of `Budget`, and in units and fractions;
    ``notes`` say what there is to say of them.

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
    notes: tuple[str, ...] = ()
    zeroed: Mapping[str, Tensor] = field(default_factory=dict)
    bypassed: Mapping[str, str] = field(default_factory=dict)
    bases: Mapping[str, Tensor] = field(default_factory=dict)
    shortened: Mapping[str, Tensor] = field(default_factory=dict)
    rescaled: Mapping[str, tuple[Scale, ...]] = field(default_factory=dict)

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
                if piece.is_zeroed:
                    mask |= piece.removed.to(parameter.device).view(shape)
            masks[name] = mask
        masks.update((n, torch.ones_like(parameters[n], dtype=torch.bool)) for n in self._leaving(parameters))
        return masks

    def _leaving(self, parameters: Mapping[str, Tensor]) -> list[str]:
        """The parameters that only entries hold which leave a module list."""
        gone = [f"{p}.{i}." for p, entries in self.shortened.items() for i in entries.nonzero().flatten().tolist()]
        found = {n: t for n, t in parameters.items() if n.startswith(tuple(gone))} if gone else {}
        stay = {id(t) for n, t in parameters.items() if n not in found}
        return [n for n, t in found.items() if id(t) not in stay]

    def renamed(self, name: str) -> str | None:
        """The name of a tensor or module in the smaller model; None where it has left with an entry of a list.

        Example:
            >>> plan = Plan("expert", {}, shortened={"experts": torch.tensor([True, False])})
            >>> plan.renamed("experts.0.weight"), plan.renamed("experts.1.weight"), plan.renamed("gate.weight")
            (None, 'experts.0.weight', 'gate.weight')
        """
        for path, gone in sorted(self.shortened.items(), key=lambda item: -len(item[0])):  # inner lists first
            if name.startswith(f"{path}."):
                place, dot, rest = name.removeprefix(f"{path}.").partition(".")
                if bool(gone[int(place)]):
                    return None
                name = f"{path}.{int((~gone[: int(place)]).sum())}{dot}{rest}"
        return name

    def to_json(self) -> str:
        """The plan as JSON text; `from_json` reads it back to an equal plan."""
        return json.dumps(self._json(), indent=1)

    def _json(self) -> dict[str, Any]:
        return {
            "format": PLAN_FORMAT,
            "version": self._version(),
            "structure": self.structure,
            "removed": {k: _encode(v) for k, v in self.removed.items()},
            "slices": {k: [_encode_slice(s) for s in v] for k, v in self.slices.items()},
            "attributes": dict(self.attributes),
            "inexact": dict(self.inexact),
            "requested": dict(self.requested),
            "achieved": dict(self.achieved),
            **({"notes": list(self.notes)} if self.notes else {}),
            **{k: v for k, v in self._later().items() if v},
        }

    def _version(self) -> int:
        """The lowest version whose readers know all that this plan says."""
        if self.rescaled or not all(piece.is_zeroed for pieces in self.slices.values() for piece in pieces):
            return PLAN_VERSION
        return 2 if any(getattr(self, part) for part in _LATER) else 1

    def _later(self) -> dict[str, Any]:
        """The parts that only some structures have, as JSON."""
        return {
            "zeroed": {k: _encode(v) for k, v in self.zeroed.items()},
            "bypassed": dict(self.bypassed),
            "bases": {k: _encode_floats(v) for k, v in self.bases.items()},
            "shortened": {k: _encode(v) for k, v in self.shortened.items()},
            "rescaled": {k: [_encode_scale(scale) for scale in v] for k, v in self.rescaled.items()},
        }

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
                slices={k: tuple(_decode_slice(s) for s in v) for k, v in raw["slices"].items()},
                attributes={str(k): int(v) for k, v in raw["attributes"].items()},
                inexact=raw["inexact"],
                requested=raw["requested"],
                achieved=raw["achieved"],
                notes=tuple(str(note) for note in raw.get("notes", ())),
                zeroed={k: _decode(v) for k, v in raw.get("zeroed", {}).items()},
                bypassed={str(k): str(v) for k, v in raw.get("bypassed", {}).items()},
                bases={str(k): _decode_floats(v) for k, v in raw.get("bases", {}).items()},
                shortened={str(k): _decode(v) for k, v in raw.get("shortened", {}).items()},
                rescaled={str(k): tuple(map(_decode_scale, v)) for k, v in raw.get("rescaled", {}).items()},
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
        names.update(f"{module_name}.{path}" if module_name else path for path in held_tensors(module))
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


def _encode_slice(piece: Slice) -> dict[str, Any]:
    return {"dim": piece.dim, **_encode(piece.removed), **({} if piece.is_zeroed else {"is_zeroed": False})}


def _decode_slice(raw: Mapping[str, Any]) -> Slice:
    return Slice(int(raw["dim"]), _decode(raw), raw.get("is_zeroed", True) is True)


def _encode_scale(scale: Scale) -> dict[str, Any]:
    return {"factor": scale.factor, "within": [{"dim": dim, **_encode(own)} for dim, own in scale.within]}


def _decode_scale(raw: Mapping[str, Any]) -> Scale:
    factor = raw["factor"]
    if not isinstance(factor, float) or not 0 < factor < math.inf:
        raise FormatError(f"damaged plan: {factor!r:.80} is no factor of weights")
    return Scale(factor, tuple((int(part["dim"]), _decode(part)) for part in raw["within"]))


def _encode_floats(matrix: Tensor) -> dict[str, Any]:
    """A matrix in double precision, little-endian and row by row: every narrower float fits in without rounding."""
    numbers = np.ascontiguousarray(matrix.detach().cpu().double().numpy(), dtype="<f8")
    dtype = str(matrix.dtype).removeprefix("torch.")
    return {"shape": list(matrix.shape), "dtype": dtype, "numbers": base64.b64encode(numbers.tobytes()).decode()}


def _decode_floats(raw: Mapping[str, Any]) -> Tensor:
    shape, dtype = raw["shape"], _FLOATS.get(raw["dtype"])
    numbers = base64.b64decode(raw["numbers"], validate=True)
    if dtype is None or not (len(shape) == 2 and all(map(_is_count, shape)) and len(numbers) == 8 * math.prod(shape)):
        raise FormatError(f"damaged plan: {len(numbers)} bytes for a {raw['dtype']!r} matrix of shape {shape!r:.80}")
    matrix = torch.from_numpy(np.frombuffer(numbers, "<f8").astype(np.float64).reshape(shape))
    if not bool(matrix.isfinite().all()):
        raise FormatError("damaged plan: a basis has numbers that are not finite")
    return matrix.to(dtype)


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
