"""What goes with what: every cell of docs/matrix.md is what it says, and nothing ends but well or in words."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parents[1] / "docs"
FOUND: dict[str, str] = json.loads((DOCS / "matrix.json").read_text(encoding="utf-8"))
NUM_PARTS = 40  # of about 25 combinations each, so that workers share them


@pytest.fixture
def matrix(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(DOCS))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return importlib.import_module("matrix")


@pytest.mark.parametrize("part", range(NUM_PARTS))
def test_every_combination_ends_as_the_page_says(matrix: ModuleType, part: int) -> None:
    chosen = list({matrix.key(each): each for each in matrix.combinations()}.values())[part::NUM_PARTS]
    assert {matrix.key(each): matrix.outcome(each) for each in chosen} == {
        matrix.key(each): FOUND[matrix.key(each)] for each in chosen
    }


def test_the_page_is_generated_from_its_outcomes(matrix: ModuleType) -> None:
    assert (DOCS / "matrix.md").read_text(encoding="utf-8") == matrix.render(FOUND)
    changed = {**FOUND, next(iter(FOUND)): "no"}
    assert (DOCS / "matrix.md").read_text(encoding="utf-8") != matrix.render(changed)


def test_most_combinations_run(matrix: ModuleType) -> None:
    assert sum(found == matrix.RUNS for found in FOUND.values()) > len(FOUND) / 2
