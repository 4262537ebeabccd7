"""The charts of the report and of the evidence pages, as Vega-Lite specifications without colours of their own.

Colours, fonts and line styles live in `theme`, one for light and one for dark paper, so that one specification serves
both. The palette is that of Okabe and Ito (2008), which keeps its order apart for every common colour blindness.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import altair as alt
import vl_convert

from topiarist.errors import InputError
from topiarist.report.record import AxisRow, Histogram, LayerRow, Sensitivity, StepRow

Chart: TypeAlias = alt.TopLevelMixin
X = Literal["compression", "macs_remaining"]

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
VEGA_LITE = ".".join(alt.SCHEMA_VERSION.split(".")[:2])  # "v6.4": the runtime that altair's specifications are for
_MOST_STEPS = 400  # per series; a longer history is drawn as means over equal stretches
_FEW_LAYERS = 24  # up to so many, rows of a per-layer chart are tall
_MANY_LAYERS = 80  # beyond so many, those of the chart of axes are as low as can be read
_AXIS_TOOLTIP = {
    "axis": "axis", "size": "size", "status": "status", "reason": "because", "share": "hangs on it", "here": "layer",
}  # fmt: skip
_SI = "datum.value === 0 ? '0' : format(datum.value, '~s')"  # 0, 500, 1.5k
_X_TITLES = {"compression": "compression (original / remaining)", "macs_remaining": "MACs remaining (fraction)"}


def theme(dark: bool = False) -> dict[str, Any]:
    """The Vega-Lite configuration of every chart: quiet axes, the palette, the named styles."""
    ink, muted, rule, paper, pale = (
        ("#e6e8ea", "#9aa4ae", "#30373e", "#14171a", "#5b646d")
        if dark
        else ("#1c2127", "#5d6873", "#e4e7ea", "#ffffff", "#b4bcc4")
    )
    palette = (
        ["#56b4e9", "#e69f00", "#2fbf93", "#e08bbd", "#f0e442", "#ff8246", "#b7c0c8"]
        if dark
        else ["#0072b2", "#d55e00", "#009e73", "#b85c96", "#a67c00", "#3a9bd1", "#4d5761"]
    )
    heat = (
        ["#1d2a35", "#35597a", "#4b93bd", "#a8c8a0", "#f2d16b"]
        if dark
        else ["#f3f6f9", "#a9cbe3", "#4b8fc0", "#0b4f86", "#0a2540"]
    )
    status = [palette[2], palette[1], muted]  # of axes: free, inexact, pinned
    return {
        "background": "transparent",
        "font": FONT,
        "view": {"stroke": None},
        "axis": {
            "labelColor": muted,
            "titleColor": muted,
            "titleFontWeight": "normal",
            "titlePadding": 10,
            "labelFontSize": 11,
            "titleFontSize": 12,
            "gridColor": rule,
            "domainColor": rule,
            "tickColor": rule,
            "tickSize": 4,
            "labelPadding": 5,
            "labelLimit": 280,
        },
        "axisY": {"domain": False, "ticks": False},
        "axisBand": {"grid": False, "labelColor": ink},
        "legend": {
            "orient": "top",
            "direction": "horizontal",
            "title": None,
            "labelColor": ink,
            "titleColor": muted,
            "titleFontWeight": "normal",
            "labelFontSize": 12,
            "offset": 12,
            "symbolStrokeWidth": 3,
        },
        "header": {"labelColor": ink, "labelFontSize": 12, "title": None, "labelAnchor": "start", "labelPadding": 4},
        "title": {"color": ink, "fontSize": 13, "fontWeight": "normal", "anchor": "start"},
        "line": {"strokeWidth": 2},
        "bar": {"cornerRadiusEnd": 1},
        "range": {"category": palette, "ordinal": [pale, palette[0]], "heatmap": heat, "diverging": status},
        "style": {
            "point": {"size": 42, "filled": True, "opacity": 1, "stroke": paper, "strokeWidth": 1},
            "band": {"opacity": 0.18},
            "reference": {"color": muted, "strokeDash": [5, 4], "strokeWidth": 1.2},
            "reference-label": {"color": muted, "fontSize": 11, "align": "right", "dx": -2},
            "original": {"color": pale, "opacity": 0.45},
            "cell": {"stroke": paper, "strokeWidth": 1},
        },
    }


@dataclass(frozen=True)
class TradeoffPoint:
    """One measurement of a trade-off: ``value`` (an accuracy, an error) at ``x`` (a compression, MACs remaining).

    Raises:
        InputError: ``x`` or ``value`` is not finite.
    """

    series: str
    x: float
    value: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.x) and math.isfinite(self.value)):
            raise InputError(f"a point of {self.series!r} must be finite, got x={self.x!r}, value={self.value!r}")


def tradeoff_chart(
    points: Iterable[TradeoffPoint],
    *,
    x: X = "compression",
    y: str = "accuracy",
    dense: float | None = None,
    series: Sequence[str] = (),
    width: int | Literal["container"] = 460,
    height: int = 280,
) -> Chart:
    """A quantity against compression (logarithmic) or MACs remaining (falling): one line per series.

    A line joins the means over seeds; a band of one sample standard deviation each side surrounds it where there are
    several. ``dense`` draws the reference line, ``series`` fixes the order of the colours, ``y`` names the quantity.

    Raises:
        InputError: there are no points.

    Example:
        >>> chart = tradeoff_chart([TradeoffPoint("global", 2.0, 0.98), TradeoffPoint("global", 4.0, 0.97)])
        >>> chart.to_dict()["layer"][0]["mark"]["type"]
        'line'
    """
    rows = _means(points)
    if not rows:
        raise InputError("a trade-off chart needs at least one point, got none; pass TradeoffPoint values")
    names = _order(series, (row["series"] for row in rows))
    base = alt.Chart(_data(rows)).encode(
        x=alt.X("x:Q", title=_X_TITLES[x], scale=_x_scale(x, [row["x"] for row in rows]), axis=_x_axis(x)),
        color=_color(names),
    )
    value = alt.Y(
        "mean:Q", title=y, scale=_y_scale([*(row["mean"] for row in rows), *([] if dense is None else [dense])])
    )
    layers: list[Any] = [
        base.mark_line().encode(y=value, order="x:Q"),
        base.mark_point(style="point").encode(
            y=value,
            tooltip=[
                alt.Tooltip("series:N", title="series"),
                alt.Tooltip("x:Q", title=_X_TITLES[x], format=".3~r"),
                alt.Tooltip("mean:Q", title=y, format=".4f"),
                alt.Tooltip("seeds:Q", title="seeds"),
            ],
        ),
    ]
    if any(row["seeds"] > 1 for row in rows):
        layers.insert(0, base.mark_area(style="band").encode(y=alt.Y("low:Q", title=y), y2="high:Q"))
    if dense is not None:
        hardest = max(rows, key=lambda row: row["x"] if x == "compression" else -row["x"])
        layers += _reference(dense, y, below=hardest["mean"] > dense)
    said = f"{y} against {_X_TITLES[x]}, one line per series: {', '.join(names)}"
    chart: Chart = alt.layer(*layers).properties(width=width, height=height, description=said)
    return chart


def _means(points: Iterable[TradeoffPoint]) -> list[dict[str, Any]]:
    """Per series and x: the mean over seeds, and the mean minus and plus one sample standard deviation."""
    grouped: dict[tuple[str, float], list[float]] = {}
    for point in points:
        grouped.setdefault((point.series, point.x), []).append(point.value)
    rows = []
    for (series, x), values in grouped.items():
        mean, spread = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
        rows.append(
            {"series": series, "x": x, "mean": mean, "low": mean - spread, "high": mean + spread, "seeds": len(values)}
        )
    return rows


def _x_scale(x: X, values: Sequence[float]) -> alt.Scale:
    if x == "compression":
        return alt.Scale(type="log", base=2, domain=[min(1.0, *values), max(2.0, *values)], nice=False)
    return alt.Scale(domain=[max(1.0, *values), 0.0])


def _y_scale(values: Sequence[float]) -> alt.Scale:
    """Around the values; where they are all the same, a hundredth to each side, so that the axis has numbers."""
    flat = min(values) == max(values)
    return alt.Scale(domain=[values[0] - 0.01, values[0] + 0.01]) if flat else alt.Scale(zero=False, nice=True)


def _x_axis(x: X) -> alt.Axis:
    if x == "compression":
        return alt.Axis(labelExpr="format(datum.value, '~r') + '×'", tickCount=6, labelOverlap="greedy")
    return alt.Axis(format=".1f", tickCount=6)


def _reference(dense: float, y: str, *, below: bool) -> list[Any]:
    """The dashed line of the dense network, its label on the side away from the curves."""
    line = alt.Chart(_data([{"dense": dense, "label": f"dense {dense:.4f}"}]))
    height = alt.Y("dense:Q", title=y)
    label = line.mark_text(style="reference-label", baseline="top" if below else "bottom", dy=4 if below else -3)
    return [
        line.mark_rule(style="reference").encode(y=height),
        label.encode(y=height, x=alt.value("width"), text="label:N"),
    ]


def layers_chart(rows: Sequence[LayerRow], *, series: Sequence[str] = ()) -> Chart:
    """Per layer, in the model's order: the sparsity, and parameters and MACs before (pale) and after (solid)."""
    labels = _short_names((row.name for row in rows), limit=34)
    names = _order(series, (row.series for row in rows))
    present = [name for name in names if any(row.series == name for row in rows)]
    panels: list[tuple[str, str, str | None]] = [
        ("sparsity", "sparsity", None),
        ("parameters", "num_after", "num_before"),
    ]
    if any(row.macs_after is not None for row in rows):
        panels.append(("MACs", "macs_after", "macs_before"))
    bar = (11 if len(present) > 1 else 14) if len(labels) <= _FEW_LAYERS else 7
    base = (
        alt.Chart(_data([{**row.model_dump(), "sparsity": row.sparsity, "label": labels[row.name]} for row in rows]))
        .encode(
            y=alt.Y("label:N", sort=list(labels.values()), title=None), yOffset=alt.YOffset("series:N", sort=present)
        )
        .properties(width=740 // len(panels), height=len(labels) * (bar * len(present) + 5))
    )
    charts = [
        _before_after(base, *panel, color=_color(names, present), labels=place == 0)
        for place, panel in enumerate(panels)
    ]
    said = f"sparsity, parameters and MACs of {len(labels)} layers, before and after"
    chart: Chart = alt.hconcat(*charts, spacing=28).properties(description=said)
    return chart


def _before_after(base: Any, title: str, after: str, before: str | None, *, color: alt.Color, labels: bool) -> Any:
    """One panel of bars along the layers' axis: solid ones, over the pale ones of ``before`` where there are any."""
    y = base.encoding.y.copy()
    y.axis = alt.Axis(labels=labels, offset=4)
    axis = alt.Axis(tickCount=4, format=".1f") if before is None else alt.Axis(tickCount=4, labelExpr=_SI)
    scale = alt.Scale(domain=[0, 1]) if before is None else alt.Undefined
    counts = [
        alt.Tooltip(f"{f}:Q", title=f"{title} {w}", format=",") for f, w in ((before, "before"), (after, "after"))
    ]
    tooltip = [alt.Tooltip("series:N"), alt.Tooltip("name:N", title="layer"), alt.Tooltip("sparsity:Q", format=".3f")]
    x = alt.X(f"{after}:Q", title=title, axis=axis, scale=scale, stack=None)
    solid = base.mark_bar().encode(x=x, y=y, color=color, tooltip=tooltip if before is None else [*tooltip, *counts])
    if before is None:
        return solid
    pale = base.mark_bar(style="original").encode(x=alt.X(f"{before}:Q", title=title, axis=axis, stack=None), y=y)
    return alt.layer(pale, solid)


def histograms_chart(histograms: Sequence[Histogram], *, columns: int = 4, width: int = 196) -> Chart:
    """One small panel per layer: how its non-zero weights were distributed before, and are after."""
    zero = {h.layer: h.num_zero / max(1, h.num_zero + sum(h.counts)) for h in histograms if h.when == "after"}
    short = _short_names((h.layer for h in histograms), limit=22)
    labels = {n: f"{label} · {zero[n]:.2f} zero" if zero.get(n) else label for n, label in short.items()}
    order = list(labels.values())
    rows = [
        {
            "layer": h.layer,
            "label": labels[h.layer],
            "when": h.when,
            "low": [float(f"{edge:.5g}") for edge in h.edges],
            "count": [*h.counts, 0],
        }
        for h in histograms
    ]
    chart: Chart = (
        alt.Chart(_data(rows))
        .transform_flatten(["low", "count"])
        .mark_area(interpolate="step-after", opacity=0.55, line={"strokeWidth": 1.2})
        .encode(
            x=alt.X("low:Q", title=None, axis=alt.Axis(tickCount=3, grid=False, format="~g", labelOverlap=True)),
            y=alt.Y(
                "count:Q",
                title=None,
                stack=None,
                scale=alt.Scale(nice=3),
                axis=alt.Axis(tickCount=3, labelExpr=_SI),
            ),
            color=alt.Color("when:O", scale=alt.Scale(domain=["before", "after"], range="ordinal")),
            tooltip=[alt.Tooltip("layer:N"), alt.Tooltip("when:O", title="weights")],
        )
        .properties(width=width, height=84)
        .facet(
            facet=alt.Facet("label:N", sort=order, title=None, header=alt.Header(labelLimit=width + 40)),
            columns=columns,
            spacing={"row": 58, "column": 52},
            bounds="flush",
        )
        .resolve_scale(x="independent", y="independent")
        .properties(description=f"histograms of the weights of {len(order)} layers, before and after")
    )
    return chart


def sensitivity_chart(sensitivity: Sensitivity) -> Chart:
    """A heat-map: what pruning one layer alone, by each ratio, costs in accuracy (in loss where none was measured)."""
    by_accuracy = any(row.accuracy is not None for row in sensitivity.rows)
    title = "accuracy lost" if by_accuracy else "loss added"
    labels = _short_names((row.layer for row in sensitivity.rows), limit=34)
    costs: dict[str, dict[str, Any]] = {}
    for row, cost in _costs(sensitivity):
        line = costs.setdefault(row.layer, {"layer": row.layer, "label": labels[row.layer], "ratio": [], "cost": []})
        line["ratio"].append(f"{row.ratio:g}")
        line["cost"].append(float(f"{cost:.5g}"))
    ratios = [f"{ratio:g}" for ratio in sorted({row.ratio for row in sensitivity.rows})]
    scale = alt.Scale(range="heatmap") if by_accuracy else alt.Scale(range="heatmap", type="symlog")
    chart: Chart = (
        alt.Chart(_data(list(costs.values())))
        .transform_flatten(["ratio", "cost"])
        .mark_rect(style="cell")
        .encode(
            x=alt.X(
                "ratio:O", sort=ratios, title="fraction removed from this layer alone", axis=alt.Axis(labelAngle=0)
            ),
            y=alt.Y("label:N", sort=list(labels.values()), title=None),
            color=alt.Color(
                "cost:Q",
                scale=scale,
                legend=alt.Legend(title=title, orient="right", direction="vertical", format=".2~f"),
            ),
            tooltip=[
                alt.Tooltip("layer:N"),
                alt.Tooltip("ratio:O", title="fraction removed"),
                alt.Tooltip("cost:Q", title=title, format=".4f"),
            ],
        )
        .properties(
            width=max(240, min(720, 76 * len(ratios))),
            height=alt.Step(24 if len(labels) <= _FEW_LAYERS else 13),
            description=f"{title} when one of {len(labels)} layers alone is pruned by {', '.join(ratios)}",
        )
    )
    return chart


def _costs(sensitivity: Sensitivity) -> list[tuple[Any, float]]:
    """Each row with what it costs against the baseline; without one, against the mildest cut of the table."""
    by_accuracy = any(row.accuracy is not None for row in sensitivity.rows)
    sign = -1.0 if by_accuracy else 1.0
    values = [(row, row.accuracy if by_accuracy else row.loss) for row in sensitivity.rows]
    read = [(row, value) for row, value in values if value is not None]
    baseline = sensitivity.baseline_accuracy if by_accuracy else sensitivity.baseline_loss
    if baseline is None:
        baseline = min((sign * value for _, value in read), default=0.0) * sign
    return [(row, sign * (value - baseline)) for row, value in read]


def history_chart(rows: Sequence[StepRow], *, series: Sequence[str] = (), width: int = 900) -> Chart:
    """Over the steps of the run, one under the other: the fraction removed, the loss and the learning rate."""
    names = _order(series, (row.series for row in rows))
    present = [name for name in names if any(row.series == name for row in rows)]
    data = _data([point for name in present for point in _thin([row for row in rows if row.series == name])])
    panels = [("removed", "fraction removed", 90), ("loss", "loss", 170), ("lr", "learning rate", 70)]
    panels = [panel for panel in panels if any(getattr(row, panel[0]) is not None for row in rows)]
    charts = []
    for place, (field, title, height) in enumerate(panels):
        last = place == len(panels) - 1
        stepwise: Any = {"interpolate": "step-after"} if field == "removed" else {}
        scale = alt.Scale(domain=[0, 1]) if field == "removed" else alt.Scale(zero=field == "lr", nice=True)
        axis = alt.Axis(labels=last, ticks=last, grid=False, tickCount=8, tickMinStep=1, format="d")
        charts.append(
            alt.Chart(data)
            .mark_line(strokeWidth=1.6, **stepwise)
            .encode(
                x=alt.X("step:Q", title="step" if last else None, axis=axis, scale=alt.Scale(nice=False)),
                y=alt.Y(f"{field}:Q", title=title, scale=scale, axis=alt.Axis(tickCount=3, minExtent=46)),
                color=_color(names, present),
            )
            .properties(width=width, height=height)
        )
    said = f"{', '.join(title for _, title, _ in panels)} over the steps of the run"
    chart: Chart = alt.vconcat(*charts, spacing=14).resolve_scale(x="shared").properties(description=said)
    return chart


def axes_chart(rows: Sequence[AxisRow], *, width: int = 740) -> Chart:
    """Which axes tie which layers: a row per layer in the order in which they run, a column per axis.

    A line joins the layers that hold an axis; a disc marks a layer that returns it, a ring one that only reads it, and
    their area is the fraction of the model's parameters that hangs on the axis there. The colour is the status.

    Raises:
        InputError: no axis ties a layer.
    """
    held = sorted((row for row in rows if row.ties), key=lambda row: (row.ties[0].depth, row.ties[-1].depth))
    if not held:
        raise InputError("a chart of axes needs the layers that they tie, got none; pass the rows of a traced model")
    depths = {tie.layer: tie.depth for row in held for tie in row.ties}
    labels = _short_names(sorted(depths, key=depths.__getitem__), limit=30)
    step = 18 if len(labels) <= _FEW_LAYERS else 12 if len(labels) <= _MANY_LAYERS else 8
    place = {layer: i for i, layer in enumerate(labels)}
    data = _data([_axis_datum(column, row, place) for column, row in enumerate(held)])
    names = json.dumps([label or "the model" for label in labels.values()])
    ticks = alt.Axis(
        values=list(range(len(labels))), labelExpr=f"{names}[datum.value]", labelFontSize=min(11, step - 1),
        labelOverlap=False, domain=False, ticks=False, grid=True,
    )  # fmt: skip
    base = alt.Chart(data).encode(
        x=alt.X("column:Q", title=None, axis=None, scale=alt.Scale(domain=[-0.7, len(held) - 0.3], nice=False)),
        color=alt.Color("status:N", scale=alt.Scale(domain=["free", "inexact", "pinned"], range="diverging")),
        tooltip=[alt.Tooltip(f"{field}:N", title=title) for field, title in _AXIS_TOOLTIP.items()],
    )
    down = alt.Scale(domain=[-0.6, len(labels) - 0.4], nice=False, reverse=True)
    rest: Any = {"title": None, "axis": ticks, "scale": down}
    y = alt.Y("layer:Q", **rest)
    span = base.mark_rule(strokeWidth=1.5, opacity=0.6).encode(y=alt.Y("first:Q", **rest), y2="last:Q")
    largest = min(1.3 * step, width / len(held)) ** 2
    area = alt.Size("params:Q", scale=alt.Scale(type="linear", range=[min(16, largest), largest]), legend=None)
    dots = base.transform_flatten(["layer", "params", "shape", "here"])
    rings = dots.transform_filter("datum.shape == 'reads'").mark_point(filled=False, strokeWidth=1.5)
    discs = dots.transform_filter("datum.shape == 'returns'").mark_point(filled=True, opacity=0.9)
    said = f"{len(held)} axes and the {len(labels)} layers that they tie"
    chart: Chart = alt.layer(span, rings.encode(y=y, size=area), discs.encode(y=y, size=area)).properties(
        width=min(width, 34 * len(held)), height=step * len(labels), description=said
    )
    return chart


def _axis_datum(column: int, row: AxisRow, place: Mapping[str, int]) -> dict[str, Any]:
    """One column of the chart; its layers, with what hangs on the axis there, are arrays that Vega takes apart."""
    layers = [place[tie.layer] for tie in row.ties]
    return {
        "column": column,
        "axis": row.name,
        "size": row.size,
        "status": row.status,
        "reason": row.reason or "nothing forbids it",
        "share": f"{row.params or 0:.3f} of the parameters, {row.macs or 0:.3f} of the MACs",
        "first": min(layers),
        "last": max(layers),
        "layer": layers,
        "params": [float(f"{tie.params or 0:.3g}") for tie in row.ties],
        "shape": ["returns" if tie.returns else "reads" for tie in row.ties],
        "here": [f"{tie.layer or 'the model'} {'returns' if tie.returns else 'reads'} it" for tie in row.ties],
    }


def _short_names(names: Iterable[str], limit: int) -> dict[str, str]:
    """Each name with its leading words cut to a letter until it fits ``limit``: ``m.l.12.self_attn.q_proj``."""
    short = {name: _short(name, limit) for name in names}
    return short if len(set(short.values())) == len(short) else {name: name for name in short}


def _short(name: str, limit: int) -> str:
    parts = name.split(".")
    for place, part in enumerate(parts[:-1]):
        if len(".".join(parts)) <= limit:
            break
        if not part.isdigit():
            parts[place] = part[:1]
    return ".".join(parts)


def _thin(rows: Sequence[StepRow]) -> list[dict[str, Any]]:
    """At most `_MOST_STEPS` points: losses are averaged over equal stretches, the rest is that of a stretch's end."""
    rows = sorted(rows, key=lambda row: row.step)
    size = math.ceil(len(rows) / _MOST_STEPS)
    points = []
    for start in range(0, len(rows), size):
        stretch = rows[start : start + size]
        losses = [row.loss for row in stretch if row.loss is not None]
        points.append({**stretch[-1].model_dump(), "loss": statistics.fmean(losses) if losses else None})
    return points


def _order(given: Sequence[str], found: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*given, *found]))


def _color(names: Sequence[str], present: Sequence[str] | None = None) -> alt.Color:
    """The series' colours, the same in every chart that is given the same names; a legend where there are several."""
    shown = list(present if present is not None else names)
    legend = alt.Legend(values=shown) if len(shown) > 1 else None
    return alt.Color("series:N", scale=alt.Scale(domain=list(names)), legend=legend)


def _data(rows: Sequence[dict[str, Any]]) -> Any:
    inline: Any = alt.InlineData  # altair leaves its constructor untyped
    return inline(values=list(rows))


def specification(chart: Chart) -> dict[str, Any]:
    """The chart as a Vega-Lite specification without a theme and without an address of a schema."""
    raw: dict[str, Any] = chart.to_dict()
    return {key: value for key, value in raw.items() if key not in ("$schema", "config")}


def save_svg(chart: Chart, path: str | Path) -> None:
    """Write the chart as an SVG on white paper, without a browser, in the light theme.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_svg(tradeoff_chart([TradeoffPoint("global", 2.0, 0.98)]), f"{folder}/curve.svg")
        ...     (Path(folder) / "curve.svg").read_text().startswith("<svg")
        True
    """
    config = {**theme(), "background": "white", "padding": 12}
    svg = vl_convert.vegalite_to_svg(specification(chart), vl_version=VEGA_LITE, config=config)
    Path(path).write_text(svg, encoding="utf-8")
