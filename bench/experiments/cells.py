"""Results as data: one cell per run in a JSON file, written as soon as it is there, so that a table can be resumed."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import topiarist

HERE = Path(__file__).parent
RUNS = HERE.parents[1] / "runs" / "evidence"
Cell = dict[str, Any]


class Table:
    """The cells of one experiment, by key."""

    def __init__(self, name: str, folder: Path = HERE) -> None:
        self.path = folder / f"{name}.json"
        self.cells: dict[str, Cell] = json.loads(self.path.read_text())["cells"] if self.path.exists() else {}

    def run(self, key: str, compute: Callable[[], Cell]) -> Cell:
        """The cell of ``key``, computed and written if it is not there yet."""
        if key not in self.cells:
            start = time.perf_counter()
            self.cells[key] = compute()
            print(f"{key}: {self.cells[key].get('summary', '')} ({time.perf_counter() - start:.0f} s)", flush=True)
            text = json.dumps({"environment": environment(), "cells": self.cells}, indent=1, sort_keys=True)
            temporary = self.path.with_suffix(".json.new")
            temporary.write_text(text + "\n")
            os.replace(temporary, self.path)
        return self.cells[key]


def environment() -> dict[str, str]:
    """What the numbers were made with."""
    return {"torch": torch.__version__.partition("+")[0], "device": "cpu"}


def arguments(description: str, folder: str) -> argparse.Namespace:
    """``--data`` (a folder of the data directory, or the data directory itself), ``--threads``, ``--seeds`` and
    ``--quick``: one seed of a small part, with its table in a folder of its own, ``out``."""
    parser = argparse.ArgumentParser(description=description)
    default = os.environ.get("TOPIARIST_DATA", "")
    parser.add_argument("--data", default=default, required=not default, help=f"the folder that holds {folder}/")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a small part, kept elsewhere, to see that it runs")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    chosen.out = Path(tempfile.mkdtemp()) if chosen.quick else HERE
    chosen.seeds = 1 if chosen.quick else chosen.seeds
    chosen.folder = str(Path(chosen.data) / folder)
    return chosen


def trained(
    name: str | None, build: Callable[[], torch.nn.Module], work: Callable[[torch.nn.Module], Any], seed: int = 0
) -> torch.nn.Module:
    """What ``build`` makes and ``work`` trains from this seed, once: it is kept beside the runs, if it has a name."""
    if name is not None and (RUNS / name).exists():
        return topiarist.load(RUNS / name, build=build)
    torch.manual_seed(seed)
    model = build()
    work(model)
    if name is not None:
        topiarist.save(model, RUNS / name)
    return model


def mean_std(values: Sequence[float], digits: int = 2) -> str:
    """``mean ± sample standard deviation``."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"


def error_rate(model: torch.nn.Module, batches: Any) -> float:
    """Test error in percentage points, over every example."""
    model.eval()
    wrong = num = 0
    with torch.no_grad():
        for inputs, targets in batches:
            wrong += int((model(inputs).argmax(1) != targets).sum())
            num += len(targets)
    return 100 * wrong / num


def first(data: Any, num_train: int, num_test: int | None) -> None:
    """Leave the first so many examples of in-memory data, in place; None leaves all."""
    for part, num in ((data.train, num_train), (data.test, num_test)):
        part.inputs, part.targets = part.inputs[:num], part.targets[:num]
