"""Examine every model of the zoos, one process each, and write the table. Resumable: what has a row is not run again.

python zoo/run.py torchvision timm --workers 2 --limit 300
python zoo/run.py torchvision timm --tenth    # nothing is written: a fixed tenth must come out as its rows say
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from families import zoos
from rich.progress import Progress

HERE = Path(__file__).parent
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["examine", "timm"])
Row = dict[str, Any]
DONE = ("passed", "nothing to cut", "skipped")
QUICK = 5  # seconds, of all that is timed, for what CI repeats


def main() -> None:
    """Run what is missing, then write docs/zoo.md."""
    os.environ["OMP_NUM_THREADS"] = "1"  # in every process to come
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("zoos", nargs="+", choices=list(zoos()))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--limit", type=int, default=300, help="seconds for one model")
    parser.add_argument("--names", nargs="*", help="these models alone")
    parser.add_argument("--every", type=int, default=1, help="take every nth model")
    parser.add_argument("--again", action="store_true", help="repeat what did not pass")
    parser.add_argument("--tenth", action="store_true", help="compare a fixed tenth with its rows; write nothing")
    chosen = parser.parse_args()
    if chosen.tenth:
        sys.exit(sum(differences(zoo, chosen.workers, chosen.limit) for zoo in chosen.zoos) > 0)
    for zoo in chosen.zoos:
        rows = read(zoo)
        names = [n for n in zoos()[zoo].names()[:: chosen.every] if not chosen.names or n in chosen.names]
        wanted = [n for n in names if n not in rows or (chosen.again and rows[n]["status"] not in DONE)]
        fill(zoo, wanted, rows, chosen.workers, chosen.limit)
    from table import write

    write({zoo: read(zoo) for zoo in zoos()})


def fill(zoo: str, names: list[str], rows: dict[str, Row], workers: int, limit: int, keep: bool = True) -> None:
    """One process a model; a row is written as soon as it is there, unless it is not to be kept."""
    with Progress() as progress, ThreadPoolExecutor(workers) as pool:
        bar = progress.add_task(zoo, total=len(names))
        for future in as_completed([pool.submit(examined, zoo, name, limit) for name in names]):
            row = future.result()
            rows[row["name"]] = row
            if keep:
                store(zoo, rows)
            progress.update(bar, advance=1, description=f"{zoo}: {row['name']} {row['status']}")


def tenth(rows: dict[str, Row]) -> list[str]:
    """Of every ten models in order of their names, relatives mostly, the one that took the least time, unless that was
    more than `QUICK` seconds."""
    names = sorted(name for name in rows if rows[name]["status"] in ("passed", "nothing to cut"))
    seconds = {name: sum(rows[name]["seconds"].values()) for name in names}
    found = [min(names[i : i + 10], key=seconds.__getitem__) for i in range(0, len(names), 10)]
    return [name for name in found if seconds[name] <= QUICK]


def differences(zoo: str, workers: int, limit: int) -> int:
    """How many models of the tenth do not come out as their rows say; each is told on standard error."""
    expected, found, count = read(zoo), {}, 0
    fill(zoo, tenth(expected), found, workers, limit, keep=False)
    for name, row in found.items():
        if row["status"] != expected[name]["status"] or row.get("removed", 0) < expected[name].get("removed", 0) - 1e-3:
            count += 1
            sys.stderr.write(f"{zoo} {name}: {row}\nits row: {expected[name]}\n")
    return count


def examined(zoo: str, name: str, limit: int) -> Row:
    """The row of one model, whatever happens to its process: forked from one that has the libraries loaded."""
    ours, theirs = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=_send, args=(zoo, name, theirs))
    process.start()
    theirs.close()
    try:
        if not ours.poll(limit):
            return {"name": name, "status": "timed out", "reason": f"over {limit} s"}
        row: Row = ours.recv()
    except EOFError:
        process.join()
        return {"name": name, "status": "crashed", "reason": f"exit code {process.exitcode}"}
    finally:
        process.kill()
        process.join()
        ours.close()
    return row


def _send(zoo: str, name: str, pipe: Connection) -> None:
    from examine import examine

    pipe.send(examine(zoo, name))


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
