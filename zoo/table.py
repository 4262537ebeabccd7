"""docs/zoo.md from the rows alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

Row = dict[str, Any]
OUT = Path(__file__).parents[1] / "docs" / "zoo.md"
LITTLE = 0.3  # of the parameters: less than this removed is told with the reason

INTRODUCTION = """# Zoo

Every model is built as its library builds it, traced, cut by half of every axis that can be cut, shrunk, run forward
and backward in both modes, verified (mask ≡ shrink in float64, relative error at most 1e-9 over the exact axes), saved
and loaded into a fresh instance with the same output; and a cut shifted by one index must fail the proof. No hints,
no code for any model or library. Those of transformers are tiny, random, and called without a cache
(`zoo/transformers_configs.py`). Rows are of the revision at which each model was examined; CI repeats a fixed tenth of
those that took less than five seconds. Generated from `zoo/results/` by `zoo/run.py`.
"""


def write(zoos: dict[str, dict[str, Row]]) -> None:
    """Write the page."""
    OUT.write_text(render(zoos))


def render(zoos: dict[str, dict[str, Row]]) -> str:
    """The page as Markdown."""
    parts = [INTRODUCTION, _summary(zoos)]
    for zoo, rows in sorted(zoos.items()):
        if rows:
            parts += [f"## {zoo}\n", _failures(rows), _little(rows)]
    return "\n".join(parts)


def _summary(zoos: dict[str, dict[str, Row]]) -> str:
    header = ["zoo", "examined", "passed", "nothing to cut", "not passed", "not examined", "median share removed",
              "median seconds: trace", "shrink"]  # fmt: skip
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for zoo, rows in sorted(zoos.items()):
        if not rows:
            continue
        by = Counter(row["status"] for row in rows.values())
        beyond = by["skipped"] + by["not built"]
        passed = [row for row in rows.values() if row["status"] == "passed"]
        figures = [_median([row["removed"] for row in passed], 2)]
        figures += [_median([row["seconds"][what] for row in passed], 2) for what in ("trace", "shrink")]
        counts = [len(rows) - beyond, by["passed"], by["nothing to cut"]]
        counts += [len(rows) - beyond - by["passed"] - by["nothing to cut"], beyond]
        lines.append("| " + " | ".join([zoo, *map(str, counts), *figures]) + " |")
    return "\n".join(lines) + "\n"


def _failures(rows: dict[str, Row]) -> str:
    found = [row for _, row in sorted(rows.items()) if row["status"] not in ("passed", "skipped")]
    if not found:
        return "Every model passed.\n"
    lines = ["| model | status | reason |", "|---|---|---|"]
    lines += [f"| {r['name']} | {r['status']} | {_cell(r.get('reason') or _what_is_wrong(r))} |" for r in found]
    return "\n".join(lines) + "\n"


def _what_is_wrong(row: Row) -> str:
    wrong = []
    if row.get("error", 0) > 1e-9:
        wrong.append(f"relative error {row['error']:.1e}")
    if row.get("reloaded") is False:
        wrong.append("another output after save and load")
    if row.get("control") is False:
        wrong.append("a shifted cut went unseen")
    return ", ".join(wrong)


def _little(rows: dict[str, Row]) -> str:
    found = sorted(
        (r for r in rows.values() if r["status"] == "passed" and r["removed"] < LITTLE), key=lambda r: r["name"]
    )
    if not found:
        return ""
    lines = [
        f"Less than {LITTLE:g} of the parameters could be removed from:\n",
        "| model | removed | because |",
        "|---|---|---|",
    ]
    lines += [f"| {r['name']} | {r['removed']:.2f} | {_cell(r['pinned'])} |" for r in found]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _median(values: list[float], digits: int) -> str:
    ordered = sorted(values)
    if not ordered:
        return ""
    middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    return f"{middle:.{digits}f}"
