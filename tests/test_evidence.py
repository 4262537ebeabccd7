"""The tables of docs/evidence say what their data say."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest

EVIDENCE = Path(__file__).parents[1] / "docs" / "evidence"
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
        for quantity in ("error", "accuracy"):
            if quantity in cell:
                cell[quantity] += 1
    assert script.render(table) != before


def test_there_is_evidence() -> None:
    assert TABLES
