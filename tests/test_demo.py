"""The main job, end to end: `topiarist demo` does all it says, in time, and its report is self-contained.

One test, so that the demo runs once however the tests are spread over processes.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from topiarist.cli.app import app
from topiarist.data import load_data
from topiarist.io import load, load_plan
from topiarist.measure import evaluate
from topiarist.models import DigitsNet
from topiarist.report import RunRecord


def test_the_demo_does_all_it_says(tmp_path: Path) -> None:
    folder, started = tmp_path / "demo", time.process_time()
    result = CliRunner().invoke(app, ["demo", "--out", str(folder)])
    assert result.exit_code == 0, result.output
    assert time.process_time() - started < 90  # one thread: the time on a clock that nobody else uses
    record = RunRecord.from_json((folder / "record.json").read_text())
    check_the_networks_are_what_was_asked_for(folder, record)
    check_what_is_on_disk_is_what_was_measured(folder, record)
    check_it_says_what_it_found(folder, result.output)
    check_the_report_opens_offline(folder, record)
    check_its_recipes_can_be_varied(folder)


def check_the_networks_are_what_was_asked_for(folder: Path, record: RunRecord) -> None:
    dense, masked, shrunk = record.variants
    assert [v.name for v in record.variants] == ["dense", "masked", "shrunk"]
    assert load_plan(folder / "masked").achieved["sparsity"] == pytest.approx(0.9, abs=1e-4)  # type: ignore[union-attr]
    assert 0.45 < shrunk.macs / dense.macs <= 0.5  # type: ignore[operator]
    for variant in record.variants:
        assert variant.accuracy is not None
        assert variant.accuracy > 0.96
    assert masked.num_params == dense.num_params
    assert masked.num_nonzero < 0.12 * dense.num_nonzero  # type: ignore[operator]
    assert shrunk.num_params < 0.6 * dense.num_params  # type: ignore[operator]
    assert shrunk.bytes_on_disk < dense.bytes_on_disk  # type: ignore[operator]


def check_what_is_on_disk_is_what_was_measured(folder: Path, record: RunRecord) -> None:
    data = load_data("digits")
    for variant in record.variants:
        network = load(folder / variant.name, build=DigitsNet)
        assert evaluate(network, data.test, torch.nn.CrossEntropyLoss())["accuracy"] == variant.accuracy


def check_it_says_what_it_found(folder: Path, output: str) -> None:
    table = output.replace("-", " ")
    for row in ("accuracy", "parameters", "non zeros", "MACs", "on disk", "latency", "theoretical", "measured"):
        assert row in table
    assert "verified: masked and shrunk agree" in output
    assert "give the very outputs" in output
    assert f"report: {folder / 'report.html'}" in output
    for stage in ("train", "prune weights", "prune channels", "save, reload", "measure", "report"):
        assert re.search(f"^{stage}: (\\d+) of \\1\\b", output, re.MULTILINE), stage


def check_the_report_opens_offline(folder: Path, record: RunRecord) -> None:
    page = (folder / "report.html").read_text()
    assert not re.search(r"""(?:src|href)\s*=\s*["']?(?:https?:)?//""", page)
    assert record.command == "topiarist demo"
    assert {point.series for point in record.curve} == {"weight", "channel"}
    assert {row.series for row in record.history} == {"dense", "weight", "channel"}
    assert record.sensitivity is not None
    assert record.axes
    assert "× theoretical" in record.verdict
    assert "× measured against eager dense" in record.verdict


def check_its_recipes_can_be_varied(folder: Path) -> None:
    options = ["--macs", "0.7", "--epochs", "1", "--steps", "1", "--recover", "none", "--out", str(folder / "varied")]
    result = CliRunner().invoke(app, ["prune", "--recipe", str(folder / "channels.yaml"), *options])
    assert result.exit_code == 0, result.output
