"""What one run leaves behind, as a plain value: everything the report shows, and nothing that it has to compute."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    JsonValue,
    ValidationError,
    model_validator,
)
from torch import Tensor

from topiarist.errors import FormatError, InputError

RUN_FORMAT = "topiarist-run"
RUN_VERSION = 1


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _positive(value: float | None) -> float | None:
    if value is not None and value <= 0:
        raise ValueError(f"must be above 0, got {value!r}")
    return value


Reading = Annotated[float | None, AfterValidator(_finite)]  # NaN and infinity are read as "no reading"
Positive = Annotated[float | None, AfterValidator(_finite), AfterValidator(_positive)]
Count = Annotated[int, Field(ge=0)]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Variant(_Value):
    """One row of the closing table: the dense, the masked or the shrunk network, as it was measured.

    What was not measured is ``None`` and shows as a dash. ``theoretical_speedup`` is original MACs / remaining MACs;
    ``measured_speedup`` comes from a clock, and ``baseline`` names what it was measured against.

    Example:
        >>> Variant(name="dense", accuracy=0.98, num_params=1000).macs is None
        True
    """

    name: str
    accuracy: Reading = None
    num_params: Count | None = None
    num_nonzero: Count | None = None
    macs: Count | None = None
    bytes_on_disk: Count | None = None
    latency_ms: Reading = None
    theoretical_speedup: Reading = None
    measured_speedup: Reading = None
    baseline: str = ""


class CurvePoint(_Value):
    """One point of the trade-off: accuracy at a compression (original / remaining) and a fraction of MACs remaining."""

    series: str
    step: int
    accuracy: Reading = None
    compression: Positive = None
    macs_remaining: Reading = None


class LayerRow(_Value):
    """One layer before and after: shapes, parameters (non-zero ones under a mask) and MACs."""

    series: str
    name: str
    kind: str = ""
    shape_before: tuple[int, ...] = ()
    shape_after: tuple[int, ...] = ()
    num_before: Count
    num_after: Count
    macs_before: Count | None = None
    macs_after: Count | None = None

    @property
    def sparsity(self) -> float:
        """The fraction of the layer's parameters that is gone: 1 − after / before (0 for a layer without any)."""
        return 1 - self.num_after / self.num_before if self.num_before else 0.0


class Histogram(_Value):
    """Counts of one layer's weights between ``edges``; exact zeros are counted apart, in ``num_zero``.

    Raises:
        ValidationError: the edges do not rise, or there is not one more of them than of counts.
    """

    layer: str
    when: Literal["before", "after"]
    edges: tuple[FiniteFloat, ...]
    counts: tuple[Count, ...]
    num_zero: Count = 0

    @model_validator(mode="after")
    def _edges_fit(self) -> Histogram:
        if len(self.edges) != len(self.counts) + 1:
            raise ValueError(f"{len(self.counts)} counts need {len(self.counts) + 1} edges, got {len(self.edges)}")
        if not all(a < b for a, b in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError(f"the edges of {self.layer!r} must rise")
        return self


class SensitivityRow(_Value):
    """What pruning one layer alone by ``ratio`` does to the loss and the accuracy."""

    layer: str
    ratio: FiniteFloat
    loss: Reading = None
    accuracy: Reading = None


class Sensitivity(_Value):
    """The table of a sensitivity scan, with the dense network's own loss and accuracy."""

    rows: tuple[SensitivityRow, ...] = ()
    baseline_loss: Reading = None
    baseline_accuracy: Reading = None


class StepRow(_Value):
    """One step of a run: the loss, the learning rate and the fraction removed at that step."""

    series: str
    step: int
    loss: Reading = None
    lr: Reading = None
    removed: Reading = None


class AxisTie(_Value):
    """One layer that holds an axis, at its place in the order in which the layers ran: whether it returns the axis or
    only reads it, and the fraction of the model's parameters that hangs on the axis there."""

    layer: str
    depth: Count
    returns: bool = False
    params: Reading = None


class AxisRow(_Value):
    """One axis of the model: free, inexact (free, but no mask equals a cut) or pinned, with the reason and the source
    line, what to do about it, the fractions of parameters and MACs that hang on it, and the layers it ties."""

    name: str
    size: Count
    status: Literal["free", "inexact", "pinned"]
    reason: str = ""
    where: str = ""
    advice: str = ""
    params: Reading = None
    macs: Reading = None
    ties: tuple[AxisTie, ...] = ()


class RunRecord(_Value):
    """Everything the report of a run shows: a frozen value that `to_json` writes and `from_json` reads back.

    Numbers that are not finite are read as ``None`` ("no reading"), so that a run that diverged still gets its report.

    Raises:
        ValidationError: a field is missing, unknown, or of the wrong type.

    Example:
        >>> record = RunRecord(title="LeNet-5 at a tenth", variants=(Variant(name="dense", accuracy=0.99),))
        >>> RunRecord.from_json(record.to_json()) == record
        True
    """

    title: str
    command: str = ""
    recipe: dict[str, JsonValue] = Field(default_factory=dict)
    environment: dict[str, JsonValue] = Field(default_factory=dict)
    variants: tuple[Variant, ...] = ()
    curve: tuple[CurvePoint, ...] = ()
    layers: tuple[LayerRow, ...] = ()
    histograms: tuple[Histogram, ...] = ()
    sensitivity: Sensitivity | None = None
    history: tuple[StepRow, ...] = ()
    verdict: str = ""
    axes: tuple[AxisRow, ...] = ()

    def to_json(self) -> str:
        """The record as JSON text; `from_json` reads it back to an equal record."""
        return f'{{"format": "{RUN_FORMAT}", "version": {RUN_VERSION}, "run": {self.model_dump_json()}}}\n'

    @classmethod
    def from_json(cls, text: str) -> RunRecord:
        """Read a record back from `to_json`.

        Raises:
            FormatError: the text is not a run record, is of another version, or is damaged.
        """
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"damaged run record: {error}; write it again with RunRecord.to_json") from error
        head = (raw.get("format"), raw.get("version")) if isinstance(raw, dict) else (None, None)
        if head != (RUN_FORMAT, RUN_VERSION):
            raise FormatError(f"not a {RUN_FORMAT} of version {RUN_VERSION}: format {head[0]!r}, version {head[1]!r}")
        try:
            return cls.model_validate(raw.get("run"))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "run"
            raise FormatError(
                f"damaged run record: {where}: {first['msg']} ({error.error_count()} fields at fault)"
            ) from error


def histogram(
    tensor: Tensor,
    bins: int = 60,
    edges: Sequence[float] | None = None,
    *,
    layer: str,
    when: Literal["before", "after"],
) -> Histogram:
    """Count the non-zero entries of ``tensor`` (any shape) in ``bins`` equal bins, and its exact zeros apart.

    Bins are half-open, [a, b), but for the last, which holds its right edge. Given ``edges``, those are used instead
    (pass the edges of "before" to compare "after" with it) and entries beyond them count in the outermost bins.

    Raises:
        InputError: the tensor holds NaN or infinity, ``bins`` is not positive, or the edges are fewer than two.

    Example:
        >>> histogram(torch.tensor([0.0, 1.0, 2.0, 3.0]), bins=2, layer="fc", when="before").counts
        (1, 2)
    """
    values = tensor.detach().flatten()
    values = values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
    if not bool(torch.isfinite(values).all()):
        raise InputError(f"the weights of {layer!r} hold NaN or infinity; a histogram needs finite values")
    nonzero = values[values != 0]
    if edges is None:
        if bins < 1:
            raise InputError(f"bins must be at least 1, got {bins}")
        low, high = (float(nonzero.min()), float(nonzero.max())) if nonzero.numel() else (-1.0, 1.0)
        if low == high:  # a single value gets a bin of its own around it
            low, high = low - abs(low) / 2, high + abs(high) / 2
        edges = [low + (high - low) * i / bins for i in range(bins)] + [high]
    if len(edges) < 2:
        raise InputError(f"a histogram needs at least two edges, got {len(edges)}")
    inner = torch.tensor(edges[1:-1], dtype=nonzero.dtype, device=nonzero.device)
    counts = torch.bincount(torch.bucketize(nonzero, inner, right=True, out_int32=True), minlength=len(edges) - 1)
    return Histogram(
        layer=layer,
        when=when,
        edges=tuple(edges),
        counts=tuple(counts.tolist()),
        num_zero=values.numel() - nonzero.numel(),
    )
