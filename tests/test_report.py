"""The report: the record goes out and comes back, the page holds what it says, and a browser draws every chart."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from topiarist.errors import FormatError, InputError
from topiarist.report import (
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
    numbers,
    page,
    plots,
)

LAYERS = ("conv1", "layer1.0.conv1", "layer1.0.conv2", "fc")
CHARTS = 7  # compression, MACs, layers, histograms, sensitivity, history, axes
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror=alert(1)>\"'&{{ 7 * 7 }}<!--"


def make_record(layers: tuple[str, ...] = LAYERS, steps: int = 40) -> RunRecord:
    """A run as the demo makes one: weights to 0.9, channels to half the MACs."""
    generator = torch.Generator().manual_seed(0)
    histograms = []
    for name in layers:
        weight = torch.randn(300, generator=generator)
        before = histogram(weight, layer=name, when="before")
        masked = torch.where(weight.abs() < 1, 0, weight)
        histograms += [before, histogram(masked, edges=before.edges, layer=name, when="after")]
    both = ("weights", "channels")
    return RunRecord(
        title="A residual network at half the work",
        command="topiarist prune --recipe run.yaml",
        recipe={"structure": "channel", "budget": {"macs": 0.5}},
        environment={"torch": "2.13.0", "threads": 2},
        variants=(
            Variant(
                name="dense", accuracy=0.98, num_params=272474, num_nonzero=272474, macs=40_813_184, latency_ms=3.2
            ),
            Variant(
                name="masked", accuracy=0.975, num_params=272474, num_nonzero=27247, macs=40_813_184, latency_ms=3.3
            ),
            Variant(
                name="shrunk",
                accuracy=0.97,
                num_params=130_000,
                num_nonzero=27247,
                macs=20_406_592,
                latency_ms=2.3,
                theoretical_speedup=2.0,
                measured_speedup=1.4,
                baseline="dense, eager",
            ),
        ),
        curve=tuple(
            CurvePoint(series=s, step=i, accuracy=0.98 - 0.001 * i * i, compression=2.0**i, macs_remaining=0.7**i)
            for s in both
            for i in range(4)
        ),
        layers=tuple(
            LayerRow(
                series=s,
                name=name,
                kind="Conv2d",
                shape_before=(16, 16, 3, 3),
                shape_after=(8, 16, 3, 3),
                num_before=2304,
                num_after=1152,
                macs_before=2304_000,
                macs_after=1152_000,
            )
            for s in both
            for name in layers
        ),
        histograms=tuple(histograms),
        sensitivity=Sensitivity(
            baseline_accuracy=0.98,
            rows=tuple(SensitivityRow(layer=n, ratio=r / 4, accuracy=0.98 - r / 9) for n in layers for r in (1, 2, 3)),
        ),
        history=tuple(
            StepRow(series=s, step=i, loss=1 / (i + 1), lr=0.1, removed=i / steps) for s in both for i in range(steps)
        ),
        verdict="2.00× theoretical, 1.40× measured against dense, eager.",
        axes=(
            AxisRow(name="conv1.out", size=16, status="free", params=0.25, macs=0.5, ties=ties(layers)),
            AxisRow(
                name="fc.out",
                size=10,
                status="pinned",
                reason="the output of the model",
                where="nets.py:41",
                advice="it stays",
                ties=ties(layers)[-1:],
            ),
        ),
    )


def ties(layers: tuple[str, ...]) -> tuple[AxisTie, ...]:
    return tuple(
        AxisTie(layer=name, depth=2 * i, returns=i % 2 == 0, params=0.1 / (i + 1)) for i, name in enumerate(layers)
    )


@pytest.fixture(scope="module")
def record() -> RunRecord:
    return make_record()


@pytest.fixture(scope="module")
def html(record: RunRecord) -> str:
    return page.render(record)


class Outline(HTMLParser):
    """The tags of a page, the text of its scripts by id, and everything else as text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self.cdata_elem is None:
            self.text += data

    def ids(self, tag: str) -> list[str | None]:
        return [attrs.get("id") for name, attrs in self.tags if name == tag and "id" in attrs]

    def specs(self) -> dict[str, Any]:
        return {str(a["id"]): json.loads(text) for a, text in self.scripts if str(a.get("id")).endswith("-spec")}


# ---------------------------------------------------------------------------------------------------- the record


def test_record_comes_back_equal(record: RunRecord) -> None:
    assert RunRecord.from_json(record.to_json()) == record
    assert RunRecord.from_json(record.to_json()) != record.model_copy(update={"verdict": "another"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t[: len(t) // 2], "damaged run record"),
        (lambda t: "", "damaged run record"),
        (lambda t: "[" * 100_000, "damaged run record"),
        (lambda t: "[1, 2]", "not a topiarist-run"),
        (lambda t: t.replace("topiarist-run", "topiarist-plan"), "format 'topiarist-plan'"),
        (lambda t: t.replace('"version": 1', '"version": 2'), "version 2"),
        (lambda t: t.replace('"run":', '"ran":'), "damaged run record: run"),
        (lambda t: t.replace('"accuracy":0.98,', '"accuracy":"high",', 1), "variants.0.accuracy"),
        (lambda t: t.replace('"num_params":272474', '"num_params":-1', 1), "variants.0.num_params"),
        (lambda t: t.replace('"verdict"', '"verdikt"'), "verdikt"),
        (lambda t: t.replace('"status":"free"', '"status":"loose"'), "axes.0.status"),
        (lambda t: t.replace('"counts":[', '"counts":[1,', 1), "histograms.0"),
        (lambda t: t.replace('"compression":1.0', '"compression":0.0', 1), "curve.0.compression"),
    ],
)
def test_damaged_record_is_refused(record: RunRecord, damage: Callable[[str], str], message: str) -> None:
    text = damage(record.to_json())
    assert text != record.to_json()
    with pytest.raises(FormatError, match=re.escape(message)):
        RunRecord.from_json(text)


def test_numbers_that_are_not_finite_become_no_reading() -> None:
    step = StepRow(series="weights", step=np.int64(3), loss=np.float32("nan"), lr=math.inf, removed=np.float64(0.5))
    assert (step.step, step.loss, step.lr, step.removed) == (3, None, None, 0.5)
    record = RunRecord(title="diverged", history=(step,))
    assert RunRecord.from_json(record.to_json()) == record


def test_record_is_frozen_and_knows_its_fields(record: RunRecord) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        record.title = "another"
    with pytest.raises(ValidationError, match="acuracy"):
        Variant(name="dense", acuracy=0.9)


@pytest.mark.parametrize("edges", [(0.0, 1.0), (0.0, 1.0, 1.0), (0.0, math.nan, 1.0), (0.0, 1.0, math.inf)])
def test_histogram_edges_are_checked(edges: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError):
        Histogram(layer="fc", when="before", edges=edges, counts=(1, 1))


def test_histogram_counts_as_numpy_does() -> None:
    values = torch.randn(7, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    values[0] = 0
    found = histogram(values, bins=13, layer="fc", when="before")
    flat = values.numpy().ravel()
    counts, _ = np.histogram(flat[flat != 0], bins=np.array(found.edges))
    assert found.counts == tuple(counts)
    assert (found.edges[0], found.edges[-1]) == (flat.min(), flat.max())
    assert np.allclose(np.diff(found.edges), (flat.max() - flat.min()) / 13, rtol=1e-12)
    assert found.num_zero == 50
    assert sum(found.counts) + found.num_zero == values.numel()


def test_histogram_on_given_edges_counts_what_lies_beyond_in_the_outermost_bins() -> None:
    values = torch.tensor([-5.0, -1.0, -0.5, 0.0, 0.5, 1.0, 7.0])
    found = histogram(values, edges=[-1.0, 0.0, 1.0], layer="fc", when="after")
    assert (found.edges, found.counts, found.num_zero) == ((-1.0, 0.0, 1.0), (3, 3), 1)


@pytest.mark.parametrize("value", [0.0, 0.25, -3.0])
def test_histogram_of_one_value(value: float) -> None:
    found = histogram(torch.full((4,), value, dtype=torch.bfloat16), layer="fc", when="before")
    assert sum(found.counts) == (4 if value else 0)
    assert found.num_zero == (0 if value else 4)


def test_histogram_refuses_what_it_cannot_count() -> None:
    with pytest.raises(InputError, match=r"'fc' hold NaN"):
        histogram(torch.tensor([1.0, math.nan]), layer="fc", when="before")
    with pytest.raises(InputError, match="at least 1, got 0"):
        histogram(torch.ones(2), bins=0, layer="fc", when="before")
    with pytest.raises(InputError, match="two edges, got 1"):
        histogram(torch.ones(2), edges=[1.0], layer="fc", when="before")


def test_layer_sparsity_is_the_fraction_removed() -> None:
    assert LayerRow(series="s", name="fc", num_before=8, num_after=2).sparsity == 0.75
    assert LayerRow(series="s", name="act", num_before=0, num_after=0).sparsity == 0


def test_the_record_needs_no_plotting_library() -> None:
    code = "import sys, topiarist.report; sys.exit('altair' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ------------------------------------------------------------------------------------------------------ the page


def test_page_has_its_sections_and_charts(html: str) -> None:
    outline = Outline(html)
    assert outline.ids("section") == [
        "variants",
        "tradeoff",
        "layers",
        "weights",
        "sensitivity",
        "history",
        "axes",
        "repeat",
    ]
    assert list(outline.specs()) == [
        "tradeoff-compression-spec",
        "tradeoff-macs-remaining-spec",
        "layers-chart-spec",
        "histograms-chart-spec",
        "sensitivity-chart-spec",
        "history-chart-spec",
        "axes-chart-spec",
    ]
    plots_on_page = [attrs["data-spec"] for _, attrs in outline.tags if "data-spec" in attrs]
    assert plots_on_page == list(outline.specs())
    assert len(plots_on_page) == CHARTS
    assert html.count("window.vegaEmbed") == 1
    assert "No chart" not in outline.text


def test_page_says_what_was_done(html: str) -> None:
    text = " ".join(Outline(html).text.split())
    for said in (
        "A residual network at half the work",
        "From dense to shrunk: 2.10× fewer parameters, 10.0× fewer non-zeros, 2.00× fewer MACs, "
        "accuracy 0.9800 → 0.9700 (−0.0100).",
        "2.00× theoretical, 1.40× measured against dense, eager.",
        "0.50 of dense",
        "40.8 M",
        "2.30 ms",
        "16 × 16 × 3 × 3→8 × 16 × 3 × 3",
        "2 axes: 1 free, 1 pinned",
        "the output of the model",
        "nets.py:41",
        "topiarist prune --recipe run.yaml",
        "budget: macs: 0.5",
        "2.13.0",
    ):
        assert said in text, said


def test_the_chart_of_axes_has_a_column_per_axis_and_a_row_per_layer(record: RunRecord) -> None:
    spec = plots.specification(plots.axes_chart(record.axes))
    (columns,) = spec["datasets"].values()
    assert [(c["axis"], c["first"], c["last"], c["layer"]) for c in columns] == [
        ("conv1.out", 0, 3, [0, 1, 2, 3]),  # depths 0, 2, 4, 6: layers between them hold no axis
        ("fc.out", 3, 3, [3]),
    ]
    assert columns[0]["shape"] == ["returns", "reads", "returns", "reads"]
    assert columns[1]["reason"] == "the output of the model"
    assert list(columns[0]["params"]) == [0.1, 0.05, 0.0333, 0.025]
    with pytest.raises(InputError, match="needs the layers that they tie"):
        plots.axes_chart([AxisRow(name="a", size=3, status="free")])


def test_the_best_of_each_column_is_marked(html: str) -> None:
    rows = re.findall(r'<tr><th scope="row">(dense|masked|shrunk)</th>(.*?)</tr>', html, re.S)
    best = {name: re.findall(r"<b>(.*?)</b>", cells) for name, cells in rows}
    assert best == {"dense": ["0.9800"], "masked": ["27.2 k"], "shrunk": ["130 k", "27.2 k", "20.4 M", "2.30 ms"]}


@pytest.mark.parametrize(
    ("emptied", "missing", "sentence"),
    [
        ({"curve": ()}, {"tradeoff-compression-spec", "tradeoff-macs-remaining-spec"}, "no accuracy measured"),
        ({"layers": ()}, {"layers-chart-spec"}, "the record holds no layers"),
        ({"histograms": ()}, {"histograms-chart-spec"}, "the record holds no histograms"),
        ({"sensitivity": None}, {"sensitivity-chart-spec"}, "no sensitivity scan"),
        ({"sensitivity": Sensitivity()}, {"sensitivity-chart-spec"}, "no sensitivity scan"),
        ({"history": (StepRow(series="weights", step=0),)}, {"history-chart-spec"}, "the record holds no steps"),
        ({"variants": ()}, set(), "the record holds no measured network"),
        ({"axes": ()}, {"axes-chart-spec"}, "the record holds no axes"),
    ],
)
def test_what_has_no_data_is_left_out_and_says_why(
    record: RunRecord, html: str, emptied: dict[str, Any], missing: set[str], sentence: str
) -> None:
    outline = Outline(page.render(record.model_copy(update=emptied)))
    assert set(Outline(html).specs()) - set(outline.specs()) == missing
    assert sentence in outline.text
    assert sentence not in Outline(html).text


def test_a_record_without_any_chart_carries_no_runtime() -> None:
    html = page.render(RunRecord(title="Nothing was measured"))
    assert len(html) < 20_000
    assert not Outline(html).scripts


def test_many_layers_are_folded_away_and_the_page_stays_small() -> None:
    names = tuple(f"model.encoder.layers.{i}.self_attention.query_key_value_projection" for i in range(160))
    html = page.render(make_record(names, steps=5000))
    assert len(html.encode()) < 2_000_000
    specs = Outline(html).specs()
    shown, more = (specs[f"{name}-spec"]["facet"]["sort"] for name in ("histograms-chart", "more-histograms-chart"))
    assert (len(shown), len(more)) == (12, 148)
    assert shown[0].startswith("m.e.l.0.s.query_key_value_projection · 0.")


def test_page_is_small_and_equal_for_equal_records(record: RunRecord, html: str) -> None:
    assert len(html.encode()) < 1_200_000
    assert page.render(RunRecord.from_json(record.to_json())) == html


def references(html: str) -> list[str]:
    """Everything on the page, its runtime aside, that a browser would fetch or follow."""
    outline = Outline(html)
    attributes = [f"{tag} {key}" for tag, attrs in outline.tags for key in attrs if key in ("src", "href", "srcset")]
    rest = re.sub(r'(<script nonce="\w+">).*?</script>', r"\1", html, flags=re.S)
    return attributes + re.findall(r"https?:|url\(|@import", rest)


def test_page_refers_to_nothing_outside_itself(html: str) -> None:
    assert references(html) == []
    assert "default-src 'none'" in html
    assert references(html.replace("<title>", '<link href="https://example.org/a.css"><title>'))  # sabotaged twin


def broken_out(html: str) -> list[str]:
    """Tags that no page of ours holds, scripts without the nonce, and specifications that do not parse."""
    outline = Outline(html)
    found = [
        tag for tag, attrs in outline.tags if tag in ("img", "iframe", "object") or any(k[:2] == "on" for k in attrs)
    ]
    nonce = re.search(r"'nonce-(\w+)'", html)
    found += [
        "script"
        for a, _ in outline.scripts
        if a.get("type") != "application/json" and (not nonce or a.get("nonce") != nonce[1])
    ]
    try:
        outline.specs()
    except ValueError:
        found.append("spec")
    return found


@pytest.fixture(scope="module")
def hostile(record: RunRecord) -> RunRecord:
    """The record with the hostile text wherever it holds text."""

    def poison(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: v if key in ("when", "status") else poison(v) for key, v in value.items()}
        if isinstance(value, list):
            return [poison(v) for v in value]
        return f"{value}{HOSTILE}" if isinstance(value, str) else value

    return RunRecord.model_validate(poison(json.loads(record.model_dump_json())))


def test_text_of_the_record_cannot_break_out(hostile: RunRecord) -> None:
    html = page.render(hostile)
    assert broken_out(html) == []
    outline = Outline(html)
    assert HOSTILE in outline.text
    rows = outline.specs()["layers-chart-spec"]["datasets"].popitem()[1]
    assert rows[0]["name"] == "conv1" + HOSTILE


@pytest.mark.parametrize(
    "hole",
    [
        lambda h: h.replace("\\u003c", "<").replace("\\u003e", ">"),
        lambda h: h.replace("&lt;", "<").replace("&gt;", ">"),
    ],
)
def test_the_check_for_breaking_out_finds_a_hole(hostile: RunRecord, hole: Callable[[str], str]) -> None:
    assert broken_out(hole(page.render(hostile)))


def test_write_replaces_the_whole_file_or_leaves_it(
    record: RunRecord, html: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def fail(source: Path, target: Path) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="full"):
            page.write(record, path)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]
    page.write(record, path)
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    assert path.read_bytes() == html.encode()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00 k"),
        (999_499, "999 k"),
        (999_500, "1.00 M"),
        (10**20, "100000 P"),
        (None, "–"),
    ],
)
def test_counts_are_written_with_three_digits_and_a_prefix(value: int | None, text: str) -> None:
    assert numbers.count(value) == text


@pytest.mark.parametrize(("value", "text"), [(-0.00281, "−0.0028"), (0.5, "+0.5000"), (-0.00001, "±0"), (0.0, "±0")])
def test_differences_carry_their_sign(value: float, text: str) -> None:
    assert numbers.signed(value) == text


# ---------------------------------------------------------------------------------------------------- the charts


def rows_of(chart: plots.Chart) -> list[dict[str, Any]]:
    """The largest table of a chart's data."""
    return max(plots.specification(chart)["datasets"].values(), key=len)


def test_tradeoff_is_the_mean_and_deviation_over_seeds() -> None:
    values = np.random.default_rng(0).normal(0.9, 0.01, size=(2, 3, 5))
    points = [
        plots.TradeoffPoint(f"series {s}", float(2**c), values[s, c, seed], seed)
        for s in range(2)
        for c in range(3)
        for seed in range(5)
    ]
    rows = {(row["series"], row["x"]): row for row in rows_of(plots.tradeoff_chart(points, dense=0.95))}
    assert len(rows) == 6
    for s in range(2):
        for c in range(3):
            row, mean, spread = rows[f"series {s}", 2**c], values[s, c].mean(), values[s, c].std(ddof=1)
            assert np.allclose([row["mean"], row["low"], row["high"]], [mean, mean - spread, mean + spread], rtol=1e-12)
            assert row["seeds"] == 5


def marks(chart: plots.Chart) -> list[str]:
    layers = plots.specification(chart)["layer"]
    return [layer["mark"]["type"] for layer in layers]


def test_tradeoff_has_a_band_only_over_seeds_and_a_line_only_with_a_reference() -> None:
    once = [plots.TradeoffPoint("global", 2.0, 0.9)]
    twice = [*once, plots.TradeoffPoint("global", 2.0, 0.8, seed=1)]
    assert marks(plots.tradeoff_chart(once)) == ["line", "point"]
    assert marks(plots.tradeoff_chart(twice)) == ["area", "line", "point"]
    assert marks(plots.tradeoff_chart(once, dense=0.9)) == ["line", "point", "rule", "text"]


def test_tradeoff_of_one_value_still_has_an_axis() -> None:
    chart = plots.specification(plots.tradeoff_chart([plots.TradeoffPoint("global", 1.0, 0.5)], dense=0.5))
    assert chart["layer"][0]["encoding"]["y"]["scale"] == {"domain": [0.49, 0.51]}


def test_tradeoff_refuses_what_it_cannot_draw() -> None:
    with pytest.raises(InputError, match="at least one point"):
        plots.tradeoff_chart([])
    with pytest.raises(InputError, match="must be finite"):
        plots.TradeoffPoint("global", 2.0, math.nan)


def test_series_keep_their_colours_across_charts(html: str) -> None:
    def domains(value: Any) -> Iterator[list[str]]:
        if isinstance(value, dict):
            if value.get("field") == "series" and "scale" in value:
                yield value["scale"]["domain"]
            for v in value.values():
                yield from domains(v)
        elif isinstance(value, list):
            for v in value:
                yield from domains(v)

    found = list(domains(Outline(html).specs()))
    assert len(found) > 8
    assert all(domain == ["weights", "channels"] for domain in found)


def test_long_histories_are_thinned_to_means() -> None:
    rng = np.random.default_rng(0)
    rows = [StepRow(series="weights", step=i, loss=float(rng.random()), removed=i / 4000) for i in range(4000)]
    points = rows_of(plots.history_chart(rows))
    assert len(points) == 400
    losses = np.array([row.loss for row in rows]).reshape(400, 10).mean(axis=1)
    assert np.allclose([point["loss"] for point in points], losses, rtol=1e-12)
    assert [point["step"] for point in points] == list(range(9, 4000, 10))


@pytest.mark.parametrize(("baseline", "expected"), [(0.9, [0.1, 0.4]), (None, [0.0, 0.3])])
def test_sensitivity_costs_are_differences_from_the_baseline(baseline: float | None, expected: list[float]) -> None:
    rows = tuple(SensitivityRow(layer="fc", ratio=r, accuracy=a, loss=9.0) for r, a in ((0.5, 0.8), (0.9, 0.5)))
    (line,) = rows_of(plots.sensitivity_chart(Sensitivity(rows=rows, baseline_accuracy=baseline)))
    assert (line["ratio"], line["cost"]) == (["0.5", "0.9"], expected)
    by_loss = tuple(SensitivityRow(layer="fc", ratio=0.5, loss=v) for v in (1.0, 3.0))
    assert rows_of(plots.sensitivity_chart(Sensitivity(rows=by_loss, baseline_loss=0.5)))[0]["cost"] == [0.5, 2.5]


def test_names_that_would_collide_stay_whole() -> None:
    names = [f"{word}.{'x' * 40}" for word in ("alpha", "axis")]
    assert {row["label"] for row in rows_of(plots.layers_chart(_layers(names)))} == set(names)
    names = [f"{word}.{'x' * 40}" for word in ("alpha", "beta")]
    assert {row["label"] for row in rows_of(plots.layers_chart(_layers(names)))} == {"a." + "x" * 40, "b." + "x" * 40}


def _layers(names: list[str]) -> list[LayerRow]:
    return [LayerRow(series="s", name=name, num_before=2, num_after=1) for name in names]


def test_svg_holds_every_mark(tmp_path: Path) -> None:
    points = [plots.TradeoffPoint("global <&>", 2.0**i, 0.9 - 0.1 * i, seed) for i in range(3) for seed in (0, 1)]
    plots.save_svg(plots.tradeoff_chart(points, y="test error", dense=0.95), tmp_path / "curve.svg")
    svg = (tmp_path / "curve.svg").read_text()
    assert svg.count('aria-roledescription="point"') == 3
    assert "test error" in svg
    assert "dense 0.9500" in svg
    plots.save_svg(plots.tradeoff_chart(points, y="test error", dense=0.95), tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == svg


# ----------------------------------------------------------------------------------------------- a real browser

_DRAWN = """() => [...document.querySelectorAll("[data-spec]")].map((plot) => [
  plot.dataset.spec,
  [...plot.querySelectorAll("svg.marks g.role-mark > *")].filter(
    (mark) => mark.tagName !== "path" || (mark.getAttribute("d") || "").length > 8).length,
])"""
_QUIET = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("chromium is not installed")
    with driver.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=_QUIET)
        yield chromium
        chromium.close()


def faults(browser: Any, html: str, path: Path, *, charts: int = CHARTS, scheme: str = "light") -> list[str]:
    """What a reader of the page would miss: messages, errors, requests beyond the file, charts that are not drawn."""
    path.write_text(html, encoding="utf-8")
    found: list[str] = []
    view = browser.new_page(color_scheme=scheme, viewport={"width": 1180, "height": 900})
    view.on("console", lambda message: found.append(f"{message.type}: {message.text}"))
    view.on("pageerror", lambda error: found.append(f"error: {error}"))
    view.on("request", lambda request: request.url == path.as_uri() or found.append(f"request: {request.url}"))
    view.goto(path.as_uri())
    view.wait_for_selector("html[data-drawn]", timeout=20_000)
    drawn = view.evaluate(_DRAWN)
    found += [f"not drawn: {name}" for name, num_marks in drawn if num_marks == 0]
    if len(drawn) != charts:
        found.append(f"{len(drawn)} charts, {charts} expected")
    if view.evaluate("window.hacked"):
        found.append("a foreign script ran")
    wide = view.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    if wide > 0:
        found.append(f"the page is {wide} pixels too wide")
    view.close()
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_browser_draws_every_chart(browser: Any, html: str, tmp_path: Path, scheme: str) -> None:
    assert faults(browser, html, tmp_path / "report.html", scheme=scheme) == []


def test_browser_draws_folded_charts_and_hostile_text(browser: Any, hostile: RunRecord, tmp_path: Path) -> None:
    assert faults(browser, page.render(hostile), tmp_path / "report.html") == []
    many = page.render(make_record(tuple(f"blocks.{i}.fc" for i in range(14))))
    assert faults(browser, many, tmp_path / "report.html", charts=CHARTS + 1) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ('"mark":{"type":"rect"', '"mark":{"type":"wrecked"', "not drawn: sensitivity-chart-spec"),
        ('"field":"cost"', '"field":"coast"', "Infinite extent"),
        ('"cost":[', '"lost":[', "sensitivity-chart-spec"),
        ('{"series":"weights","x"', '{"series":"weights",,"x"', "not drawn: tradeoff-compression-spec"),
        ('data-spec="layers-chart-spec"', "", "6 charts, 7 expected"),
        ("<main>", '<main><img src="https://example.org/a.png">', "https://example.org/a.png"),
        ("<main>", "<main><script>window.hacked = 1</script>", "Content Security Policy"),
        ("<main>", '<main><div style="width: 3000px">wide</div>', "pixels too wide"),
    ],
)
def test_browser_check_finds_sabotage(browser: Any, html: str, tmp_path: Path, old: str, new: str, fault: str) -> None:
    assert old in html
    found = faults(browser, html.replace(old, new), tmp_path / "report.html")
    assert any(fault in one for one in found), found
    assert "a foreign script ran" not in found  # the policy of the page holds even where escaping would fail
