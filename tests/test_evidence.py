"""The tables of bench/experiments say what their data say."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

EVIDENCE = Path(__file__).parents[1] / "bench" / "experiments"
TABLES = sorted(path.stem for path in EVIDENCE.glob("*.json"))


@pytest.fixture
def script(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EVIDENCE))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return importlib.import_module(request.param)


@pytest.mark.parametrize("script", TABLES, indirect=True)
def test_table_is_generated_from_its_data(script: ModuleType) -> None:
    table = script.Table(script.__name__)
    assert (EVIDENCE / f"{script.__name__}.md").read_text(encoding="utf-8") == script.render(table)


@pytest.mark.parametrize("script", TABLES, indirect=True)
def test_a_changed_number_is_noticed(script: ModuleType) -> None:
    table = script.Table(script.__name__)
    before = script.render(table)
    for cell in table.cells.values():
        for quantity in ("error", "accuracy", "loss", "params", "clean"):
            if quantity in cell:
                cell[quantity] += 1
    assert script.render(table) != before


def test_there_is_evidence() -> None:
    assert TABLES


@pytest.fixture
def zoo(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, dict[str, dict[str, dict[str, Any]]]]:
    folder = Path(__file__).parents[1] / "zoo"
    monkeypatch.syspath_prepend(str(folder))
    results = {
        path.stem: {row["name"]: row for row in json.loads(path.read_text())} for path in folder.glob("results/*")
    }
    return importlib.import_module("table"), results


def test_the_zoo_page_is_generated_from_its_rows(zoo) -> None:
    table, results = zoo
    assert table.OUT.read_text(encoding="utf-8") == table.render(results)


def test_a_failure_in_the_zoo_is_told(zoo) -> None:
    table, results = zoo
    row = next(iter(next(iter(results.values())).values()))
    row.update(status="failed", reason="a reason of its own")
    assert f"| {row['name']} | failed | a reason of its own |" in table.render(results)


@pytest.fixture
def zoo_run(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "zoo"))
    return importlib.import_module("run")


def test_the_tenth_is_a_tenth_and_the_same_every_time(zoo_run) -> None:
    rows = {f"net{i:02}": {"status": "passed", "seconds": {"trace": float(i % 7)}} for i in range(25)}
    assert zoo_run.tenth(rows) == zoo_run.tenth(dict(reversed(rows.items()))) == ["net00", "net14", "net21"]


@pytest.mark.parametrize(("found", "count"), [({}, 0), ({"status": "wrong"}, 1), ({"removed": 0.4}, 1)])
def test_a_model_that_comes_out_otherwise_is_counted(monkeypatch, zoo_run, found: dict[str, Any], count: int) -> None:
    row = {"name": "net", "status": "passed", "removed": 0.5, "seconds": {}}
    monkeypatch.setattr(zoo_run, "read", lambda zoo: {"net": row})
    monkeypatch.setattr(zoo_run, "fill", lambda zoo, names, rows, *_, **__: rows.update(net={**row, **found}))
    assert zoo_run.differences("timm", 1, 1) == count
