"""One self-contained HTML page from the record of a run: it opens offline, and can only run its own scripts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import vl_convert
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from topiarist.report import numbers, plots
from topiarist.report.record import CurvePoint, Histogram, LayerRow, RunRecord, StepRow, Variant

_MOST_PANELS = 12  # histograms beyond these are folded away


@dataclass(frozen=True)
class Figure:
    """One place for a chart: its specification, or the sentence that says why there is none."""

    id: str
    title: str
    caption: str = ""
    spec: dict[str, Any] | None = None
    missing: str = ""


@dataclass(frozen=True)
class Tile:
    """One of the few numbers under the headline."""

    name: str
    figure: str
    note: str


@dataclass(frozen=True)
class Cell:
    """One number of the closing table, with the exact value and how it compares with the dense network."""

    text: str
    exact: str = ""
    note: str = ""
    best: bool = False


@dataclass(frozen=True)
class Column:
    """One column of the closing table: which field, how it is written, and whether less is better."""

    title: str
    field: str
    write: Callable[[Any], str]
    less_is_better: bool = True

    def best(self, variants: Sequence[Variant]) -> Any:
        """The best value of the column, or None where nothing differs."""
        values = {getattr(v, self.field) for v in variants} - {None}
        return None if len(values) < 2 else (min if self.less_is_better else max)(values)


COLUMNS = (
    Column("accuracy", "accuracy", numbers.fraction, less_is_better=False),
    Column("parameters", "num_params", numbers.count),
    Column("non-zeros", "num_nonzero", numbers.count),
    Column("MACs", "macs", numbers.count),
    Column("on disk", "bytes_on_disk", lambda value: numbers.count(value, "B")),
    Column("latency", "latency_ms", numbers.milliseconds),
    Column("theoretical speed-up", "theoretical_speedup", numbers.times, less_is_better=False),
    Column("measured speed-up", "measured_speedup", numbers.times, less_is_better=False),
)
_SIZES = ("num_params", "num_nonzero", "macs", "bytes_on_disk", "latency_ms")


def render(record: RunRecord) -> str:
    """The record as one HTML page that carries its charts and their runtime, and refers to nothing outside itself.

    Every text of the record is escaped. A content security policy admits the page's own scripts by a nonce, which is
    the digest of the record, and forbids every connection. Equal records give equal pages.

    Example:
        >>> page = render(RunRecord(title="LeNet-5 at a tenth"))
        >>> "<h1>LeNet-5 at a tenth</h1>" in page, "vegaEmbed" in page  # no chart, so no runtime
        (True, False)
    """
    figures = _figures(record)
    rows = [_row(variant, record.variants) for variant in record.variants]
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            record=record,
            nonce=hashlib.sha256(record.to_json().encode()).hexdigest(),
            summary=_summary(record.variants),
            tiles=list(_tiles(record.variants)),
            columns=[column.title for column in COLUMNS],
            variants=rows,
            any_best=any(cell.best for row in rows for cell in row["cells"]),
            figures=figures,
            layers={name: [row for row in record.layers if row.series == name] for name in _names(record.layers)},
            num_pinned=sum(axis.status == "pinned" for axis in record.axes),
            num_inexact=sum(axis.status == "inexact" for axis in record.axes),
            recipe=yaml.safe_dump(record.recipe, sort_keys=False, allow_unicode=True) if record.recipe else "",
            num_charts=sum(figure.spec is not None for figure in figures.values() if figure),
            themes={"light": plots.theme(), "dark": plots.theme(dark=True)},
            runtime=Markup(_runtime()),  # noqa: S704 the bundle of vl-convert, not the record
        )
    )


def write(record: RunRecord, path: str | Path) -> None:
    """Write the page to ``path`` as a whole or not at all: an interrupted write leaves the old file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write(RunRecord(title="LeNet-5 at a tenth"), Path(folder) / "report.html")
        ...     [file.name for file in Path(folder).iterdir()]
        ['report.html']
    """
    page, path = render(record), Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(page.encode())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("topiarist", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters.update(count=numbers.count, shape=numbers.shape)
    return environment


@cache
def _runtime() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script that defines ``vegaEmbed``."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=plots.VEGA_LITE)


def _ends(variants: Sequence[Variant]) -> tuple[Variant, Variant] | None:
    """The dense network and what became of it (the last of the table), where there are two."""
    if len(variants) < 2:
        return None
    return next((v for v in variants if v.name == "dense"), variants[0]), variants[-1]


def _summary(variants: Sequence[Variant]) -> str:
    """What was done, in one sentence: ``From dense to shrunk: 3.90× fewer parameters, …``."""
    ends = _ends(variants)
    if ends is None:
        return ""
    dense, last = ends
    said = []
    for field, what in (("num_params", "parameters"), ("num_nonzero", "non-zeros"), ("macs", "MACs")):
        before, after = getattr(dense, field), getattr(last, field)
        if before and after and after < before:
            said.append(f"{numbers.times(before / after)} fewer {what}")
    if dense.accuracy is not None and last.accuracy is not None:
        change = numbers.signed(last.accuracy - dense.accuracy)
        said.append(f"accuracy {numbers.fraction(dense.accuracy)} → {numbers.fraction(last.accuracy)} ({change})")
    return f"From {dense.name} to {last.name}: {', '.join(said)}." if said else ""


def _tiles(variants: Sequence[Variant]) -> Iterator[Tile]:
    ends = _ends(variants)
    if ends is None:
        return
    dense, last = ends
    if dense.accuracy is not None and last.accuracy is not None:
        change = numbers.signed(last.accuracy - dense.accuracy)
        yield Tile("Accuracy", numbers.fraction(last.accuracy), f"{change} against {dense.name}")
    for column in COLUMNS:
        before, after = getattr(dense, column.field), getattr(last, column.field)
        if column.field in ("num_params", "macs", "bytes_on_disk") and before and after is not None:
            name = column.title if column.title == "MACs" else column.title.capitalize()
            yield Tile(name, column.write(after), f"of {column.write(before)}, {after / before:.2f} remain")
    if last.measured_speedup is not None:
        against = f"measured against {last.baseline}" if last.baseline else "measured"
        yield Tile("Speed-up", numbers.times(last.measured_speedup), against)


def _row(variant: Variant, variants: Sequence[Variant]) -> dict[str, Any]:
    cells = []
    for column in COLUMNS:
        value, best = getattr(variant, column.field), column.best(variants)
        cells.append(
            Cell(
                text=column.write(value),
                exact="" if value is None else f"{value:,}",
                note="" if value is None else _note(column.field, variant, variants),
                best=best is not None and value == best,
            )
        )
    return {"name": variant.name, "cells": cells}


def _note(field: str, variant: Variant, variants: Sequence[Variant]) -> str:
    """How a number compares with that of the dense network; for a measured speed-up, against what it was measured."""
    if field == "measured_speedup":
        return f"against {variant.baseline}" if variant.baseline else ""
    ends = _ends(variants)
    if ends is None or variant is ends[0] or getattr(ends[0], field) is None:
        return ""
    value, dense = getattr(variant, field), getattr(ends[0], field)
    if field == "accuracy":
        return numbers.signed(value - dense)
    return f"{value / dense:.2f} of {ends[0].name}" if field in _SIZES and dense else ""


def _figures(record: RunRecord) -> dict[str, Figure | None]:
    series = _names((*record.curve, *record.history, *record.layers))
    shown, folded = _split(record.histograms)
    return {
        "compression": _tradeoff(record, "compression", series),
        "macs": _tradeoff(record, "macs_remaining", series),
        "layers": Figure(
            "layers-chart",
            "Where it was cut",
            "Sparsity is the fraction removed from a layer. Pale: before; solid: after.",
            plots.specification(plots.layers_chart(record.layers, series=series)) if record.layers else None,
            "No chart: the record holds no layers.",
        ),
        "histograms": Figure(
            "histograms-chart",
            "Distribution of the weights, before and after",
            "Counts of the non-zero weights of each layer; exact zeros are left out and given beside its name.",
            plots.specification(plots.histograms_chart(shown)) if shown else None,
            "No chart: the record holds no histograms.",
        ),
        "more_histograms": Figure(
            "more-histograms-chart",
            f"Distribution of the weights, {len({h.layer for h in folded})} more layers",
            spec=plots.specification(plots.histograms_chart(folded)),
        )
        if folded
        else None,
        "sensitivity": _sensitivity(record),
        "axes": Figure(
            "axes-chart",
            "Which axes tie which layers",
            "A row per layer that holds a matrix, in the order in which they run; a column per axis. A disc: the layer "
            "returns the axis; a ring: it only reads it; their area: the parameters that hang on the axis there.",
            plots.specification(plots.axes_chart(record.axes)),
        )
        if any(axis.ties for axis in record.axes)
        else None,
        "history": _history(record, series),
    }


def _names(rows: Sequence[CurvePoint | StepRow | LayerRow]) -> list[str]:
    """The series of the rows, in the order in which they first appear."""
    return list(dict.fromkeys(row.series for row in rows))


def _tradeoff(record: RunRecord, x: plots.X, series: Sequence[str]) -> Figure:
    points = [
        plots.TradeoffPoint(point.series, getattr(point, x), point.accuracy)
        for point in record.curve
        if point.accuracy is not None and getattr(point, x) is not None
    ]
    dense = next((v.accuracy for v in record.variants if v.name == "dense"), None)
    what = {"compression": "compression", "macs_remaining": "remaining MACs"}[x]
    chart = plots.tradeoff_chart(points, x=x, dense=dense, series=series, width="container") if points else None
    return Figure(
        f"tradeoff-{x.replace('_', '-')}",
        f"Accuracy against {what}",
        "Further right is further pruned." if points else "",
        plots.specification(chart) if chart is not None else None,
        f"No chart: the record holds no accuracy measured along {what}.",
    )


def _sensitivity(record: RunRecord) -> Figure:
    table = record.sensitivity
    read = [row for row in table.rows if row.accuracy is not None or row.loss is not None] if table else []
    return Figure(
        "sensitivity-chart",
        "What each layer alone can lose",
        "One layer is pruned at a time, without recovery; a cell's colour is what that costs." if read else "",
        plots.specification(plots.sensitivity_chart(table)) if table and read else None,
        "No heat-map: no sensitivity scan was part of this run.",
    )


def _history(record: RunRecord, series: Sequence[str]) -> Figure:
    rows = record.history
    lost = sum(row.loss is None for row in rows)
    caption = f"{lost} of {len(rows)} steps have no finite loss and are left out." if 0 < lost < len(rows) else ""
    read = any(value is not None for row in rows for value in (row.loss, row.lr, row.removed))
    return Figure(
        "history-chart",
        "Over the steps of the run",
        caption,
        plots.specification(plots.history_chart(rows, series=series)) if read else None,
        "No chart: the record holds no steps.",
    )


def _split(histograms: Sequence[Histogram]) -> tuple[list[Histogram], list[Histogram]]:
    """The histograms of the first layers, and those to fold away."""
    first = set(list(dict.fromkeys(h.layer for h in histograms))[:_MOST_PANELS])
    return [h for h in histograms if h.layer in first], [h for h in histograms if h.layer not in first]
