"""Examine every model of the zoos, one process each, and write the table. Resumable: what has a row is not run again.

python zoo/run.py torchvision timm --workers 2 --limit 300
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from families import zoos
from rich.progress import Progress

HERE = Path(__file__).parent
Row = dict[str, Any]
DONE = ("passed", "nothing to cut", "skipped")


def main() -> None:
    """Run what is missing, then write docs/zoo.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("zoos", nargs="+", choices=list(zoos()))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=int, default=300, help="seconds for one model")
    parser.add_argument("--names", nargs="*", help="these models alone")
    parser.add_argument("--every", type=int, default=1, help="take every nth model")
    parser.add_argument("--again", action="store_true", help="repeat what did not pass")
    chosen = parser.parse_args()
    for zoo in chosen.zoos:
        rows = read(zoo)
        names = [n for n in zoos()[zoo].names()[:: chosen.every] if not chosen.names or n in chosen.names]
        wanted = [n for n in names if n not in rows or (chosen.again and rows[n]["status"] not in DONE)]
        fill(zoo, wanted, rows, chosen.workers, chosen.limit)
    from table import write

    write({zoo: read(zoo) for zoo in zoos()})


def fill(zoo: str, names: list[str], rows: dict[str, Row], workers: int, limit: int) -> None:
    """One process a model; a row is written as soon as it is there."""
    with Progress() as progress, ThreadPoolExecutor(workers) as pool:
        bar = progress.add_task(zoo, total=len(names))
        for future in as_completed([pool.submit(examined, zoo, name, limit) for name in names]):
            row = future.result()
            rows[row["name"]] = row
            store(zoo, rows)
            progress.update(bar, advance=1, description=f"{zoo}: {row['name']} {row['status']}")


def examined(zoo: str, name: str, limit: int) -> Row:
    """The row of one model, whatever happens to its process."""
    command = [sys.executable, str(HERE / "examine.py"), zoo, name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"name": name, "status": "timed out", "reason": f"over {limit} s"}
    if done.returncode != 0:
        return {"name": name, "status": "crashed", "reason": (done.stderr or "").strip()[-400:]}
    row: Row = json.loads(done.stdout.strip().splitlines()[-1])
    return row


def read(zoo: str) -> dict[str, Row]:
    """The rows so far, by name."""
    path = HERE / "results" / f"{zoo}.json"
    return {row["name"]: row for row in json.loads(path.read_text())} if path.exists() else {}


def store(zoo: str, rows: dict[str, Row]) -> None:
    """Write the rows as a whole."""
    path = HERE / "results" / f"{zoo}.json"
    path.parent.mkdir(exist_ok=True)
    beside = path.with_suffix(".new")
    lines = ",\n".join(json.dumps(rows[name], sort_keys=True) for name in sorted(rows))
    beside.write_text(f"[\n{lines}\n]\n")
    os.replace(beside, path)


if __name__ == "__main__":
    main()
