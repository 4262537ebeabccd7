"""From the networks and results of a run to its `RunRecord`: measure them, and lay out what the report shows."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import JsonValue
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from topiarist.allocation.sensitivity import SensitivityTable
from topiarist.graph import Axes, AxisInfo, explain, trace
from topiarist.measure import Measurement, macs, measure
from topiarist.plan import Plan
from topiarist.report.record import (
    AxisRow,
    AxisTie,
    CurvePoint,
    Histogram,
    LayerRow,
    RunRecord,
    Sensitivity,
    SensitivityRow,
    StepRow,
    Variant,
    histogram,
)

Evaluate = Callable[[nn.Module], Mapping[str, float]]
Rows = Sequence[Mapping[str, float]]

_BATCH = 64  # examples in the batch that is timed
_SECONDS = 1.0  # of timing, for each network of a pair


class Result(Protocol):
    """What a pruning run returns, as far as the report looks at it; see `topiarist.PruneResult`."""

    @property
    def model(self) -> nn.Module:
        """The masked or smaller network."""

    @property
    def plan(self) -> Plan:
        """What was removed."""

    @property
    def curve(self) -> Rows:
        """A row per pruning step."""

    @property
    def history(self) -> Rows:
        """A row per training step."""


def build(
    title: str,
    dense: nn.Module,
    results: Sequence[Result],
    example_inputs: Any,
    *,
    evaluate: Evaluate,
    batch: Any = None,
    training: Rows = (),
    table: SensitivityTable | None = None,
    command: str = "",
    recipe: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> RunRecord:
    """Measure ``dense`` and what became of it, and lay out the record of the run.

    Args:
        results: one or more prunings of ``dense``; each is a series of the charts, named by its structure.
        example_inputs: what axes are traced and MACs are counted on.
        evaluate: maps a network to ``{"loss": …, "accuracy": …}``.
        batch: inputs to time the networks on, of which 64 examples are taken; ``example_inputs`` unless given.
        training: the rows of the training of ``dense``.
        table: a sensitivity scan, for its heat-map.
        progress: called with the number of networks measured and of all.

    Raises:
        TraceError: a network does not run on the inputs.
    """
    timed = example_inputs if batch is None else tree_map_only(Tensor, lambda t: t[:_BATCH], batch)
    names = ["dense", *_names(results)]
    networks = [dense, *(result.model for result in results)]
    variants: list[Variant] = []
    verdicts: list[str] = []
    for name, network in zip(names, networks, strict=True):
        counted = measure(network, example_inputs, latency=False)
        variant = _variant(name, evaluate(network), counted, variants[0] if variants else None)
        if variants:
            raced = measure(network, timed, baseline=dense, seconds=_SECONDS)
            variant = _timed(variant, raced)
            verdicts.append(f"{name.capitalize()}: {_verdict(variant, raced)}")
            if raced.baseline is not None:
                variants[0] = variants[0].model_copy(update={"latency_ms": raced.baseline.latency_ms})
        variants.append(variant)
        if progress is not None:
            progress(len(variants), len(networks))
    series = [(result.plan.structure, result) for result in results]
    layers = _Layers(dense, example_inputs)
    return RunRecord(
        title=title,
        command=command,
        recipe=dict(recipe or {}),
        environment=environment(dense),
        variants=tuple(variants),
        curve=tuple(point for name, result in series for point in _curve(name, result.curve, variants[0])),
        layers=tuple(row for name, result in series for row in layers.rows(name, result.model)),
        histograms=tuple(layers.histograms(results[0].model)) if results else (),
        sensitivity=None if table is None else _sensitivity(table),
        history=(*_training(training), *(row for name, result in series for row in _history(name, result))),
        verdict="\n".join(verdicts),
        axes=tuple(axis_rows(trace(dense, example_inputs))),
    )


def environment(model: nn.Module) -> dict[str, JsonValue]:
    """Where a run took place: versions, processor, threads, device and date."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return {
        "topiarist": version("topiarist"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "date": datetime.date.today().isoformat(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def _names(results: Sequence[Result]) -> list[str]:
    """What each network is called: masked or shrunk, and by which structure where there are several."""
    kinds = ["masked" if result.plan.structure == "weight" or result.plan.zeroed else "shrunk" for result in results]
    return [
        f"{kind} ({result.plan.structure})" if kinds.count(kind) > 1 else kind
        for kind, result in zip(kinds, results, strict=True)
    ]


def _variant(name: str, read: Mapping[str, float], counted: Measurement, dense: Variant | None) -> Variant:
    """What can be counted of one network; MACs are those with a weight that is not zero."""
    return Variant(
        name=name,
        accuracy=read.get("accuracy"),
        num_params=counted.num_params,
        num_nonzero=counted.num_nonzero,
        macs=counted.nonzero_macs,
        bytes_on_disk=counted.bytes_on_disk,
        theoretical_speedup=dense.macs / max(1, counted.nonzero_macs) if dense is not None and dense.macs else None,
    )


def _timed(variant: Variant, raced: Measurement) -> Variant:
    name, threads = raced.baseline_name or "", raced.num_threads
    baseline = f"{name}, batch {raced.batch_size}, {threads} thread{'s' * (threads > 1)}, {raced.device}"
    times = {"latency_ms": raced.latency_ms, "measured_speedup": raced.measured_speedup, "baseline": baseline}
    return variant.model_copy(update=times)


def _verdict(variant: Variant, raced: Measurement) -> str:
    """The measurement's own verdict; where zeros are counted as saved, that no dense kernel saves them."""
    if variant.theoretical_speedup is None:
        return f"{variant.measured_speedup:.2f}× measured against {variant.baseline}."
    if raced.nonzero_macs > 0.95 * raced.macs:
        return raced.verdict()
    return (
        f"{variant.theoretical_speedup:.2f}× theoretical, {variant.measured_speedup:.2f}× measured against "
        f"{variant.baseline}, because dense kernels multiply zeros like any other number."
    )


def _curve(series: str, rows: Rows, dense: Variant) -> Iterator[CurvePoint]:
    yield CurvePoint(series=series, step=0, accuracy=dense.accuracy, compression=1.0, macs_remaining=1.0)
    for row in rows:
        yield CurvePoint(
            series=series,
            step=int(row["step"]),
            accuracy=row.get("accuracy"),
            compression=row["compression"],
            macs_remaining=row["macs"],
        )


def _training(rows: Rows) -> Iterator[StepRow]:
    for row in rows:
        yield StepRow(series="dense", step=int(row["step"]), loss=row["loss"], lr=row["lr"], removed=0.0)


def _history(series: str, result: Result) -> Iterator[StepRow]:
    """The training steps of all pruning steps, and of step 0 before them, in one count; where nothing was trained, the
    pruning steps."""
    removed = {int(row["step"]): row["sparsity"] for row in result.curve}
    for count, row in enumerate(result.history):
        yield StepRow(
            series=series, step=count, loss=row["loss"], lr=row["lr"], removed=removed.get(int(row["step"]), 0.0)
        )
    if not result.history:
        for row in result.curve:
            yield StepRow(series=series, step=int(row["step"]), loss=row.get("loss"), removed=row["sparsity"])


def _sensitivity(table: SensitivityTable) -> Sensitivity:
    rows = (SensitivityRow(layer=c.layer, ratio=c.ratio, loss=c.loss, accuracy=c.accuracy) for c in table.cells)
    return Sensitivity(rows=tuple(rows), baseline_loss=table.loss, baseline_accuracy=table.accuracy)


def axis_rows(axes: Axes) -> list[AxisRow]:
    """What the report shows of the axes of a model; `topiarist.report.plots.axes_chart` draws them.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> [(row.name, row.status) for row in axis_rows(trace(net, torch.zeros(1, 4)))][:2]
        [('0.weight:0', 'free'), ('2.weight:0', 'pinned')]
    """
    return [_axis_row(axes, axis) for axis in axes.axes]


def _axis_row(axes: Axes, axis: AxisInfo) -> AxisRow:
    row, extent = explain.row(axes, axis), explain.is_extent(axis)
    return AxisRow(
        name=row.name,
        size=row.size,
        status=row.status,
        reason="; ".join(row.reasons),
        where=", ".join(row.tensors),
        advice="" if row.is_fixed else "; ".join(row.advice),
        params=row.params,
        macs=row.macs,
        ties=() if extent else tuple(AxisTie(**asdict(tie)) for tie in explain.ties(axes, axis)),
    )


class _Layers:
    """The layers of the dense network that multiply: their largest parameter, and what becomes of it."""

    def __init__(self, dense: nn.Module, example_inputs: Any) -> None:
        self.dense, self.example_inputs = dense, example_inputs
        self.macs = macs(dense, example_inputs).by_module
        self.names = [n for n, m in dense.named_modules() if n in self.macs and any(True for _ in m.parameters(False))]

    def rows(self, series: str, network: nn.Module) -> Iterator[LayerRow]:
        """Every layer before and after; under a mask, parameters and MACs are those that are not zero."""
        after, modules = macs(network, self.example_inputs).by_module, dict(network.named_modules())
        for name in self.names:
            old, new = self.dense.get_submodule(name), _parameters(modules.get(name))
            weight = _largest(new)
            density = int(weight.count_nonzero()) / max(1, weight.numel())
            inside = sum(num for each, num in after.items() if each.startswith(f"{name}."))  # two layers for one
            yield LayerRow(
                series=series,
                name=name,
                kind=type(old).__name__,
                shape_before=tuple(_largest(_parameters(old)).shape),
                shape_after=tuple(weight.shape),
                num_before=sum(p.numel() for p in old.parameters(False)),
                num_after=sum(int(p.count_nonzero()) for p in new),
                macs_before=self.macs[name],
                macs_after=round(after.get(name, inside) * density),
            )

    def histograms(self, network: nn.Module) -> Iterator[Histogram]:
        """The weights of every layer, before and after in the same bins; of layers that are gone, before alone."""
        modules = dict(network.named_modules())
        for name in self.names:
            before = histogram(_largest(_parameters(self.dense.get_submodule(name))), layer=name, when="before")
            yield before
            if left := _parameters(modules.get(name)):
                yield histogram(_largest(left), edges=before.edges, layer=name, when="after")


def _parameters(module: nn.Module | None) -> list[Tensor]:
    """A layer's own parameters, or those of the layers that stand in its place; none where it is gone."""
    return [] if module is None else list(module.parameters(False)) or list(module.parameters())


def _largest(parameters: Sequence[Tensor]) -> Tensor:
    return max(parameters, key=Tensor.numel, default=torch.zeros(0))
