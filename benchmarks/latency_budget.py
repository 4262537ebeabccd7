"""What a budget of milliseconds achieves: ResNet-20 at parts of its own latency, batch 1 and 64.

    python benchmarks/latency_budget.py

The whole and the smaller network take turns in one process. ``target`` and ``achieved`` are parts of the whole
network's time; ``again`` is the same measured once more, ``predicted`` what the table of layers said of
the last one. The weights are random: what is timed does not depend on them.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

import topiarist
from topiarist.measure.executors import in_turn, prepare, ratio, wall_clock
from topiarist.models import build
from topiarist.plan import Budget
from topiarist.planning import Planner
from topiarist.saliency import Magnitude
from topiarist.structure import Channel

PARTS = (0.8, 0.6, 0.5)


def table(batch: int, executor: str, allocation: str, folder: Path) -> None:
    """Print target against achieved for one batch size."""
    torch.manual_seed(0)
    net, x = build("resnet20"), torch.zeros(1, 3, 32, 32)
    budget = Budget(latency_ms=1e9, batch=batch, executor=executor)
    planner = Planner.of(net, x, Channel(), (), None)
    print(f"batch {batch}, {executor}, allocation {allocation}")
    print(f"{'target':>8} {'achieved':>9} {'again':>7} {'predicted':>10}  note")
    planner, timed = planner.timed(budget, folder / f"{batch}-{executor}.json")
    whole = float(timed.dense_ms or 0.0) if timed is not None else 0.0
    for part in PARTS:
        asked = Budget(latency_ms=part * whole, batch=batch, executor=executor, dense_ms=whole)
        plan = planner.plan(Magnitude(2), topiarist.allocation.resolve(allocation), asked)
        small = topiarist.shrink(net, plan)
        inputs = torch.zeros(batch, 3, 32, 32)
        pair = {"whole": prepare(build("resnet20"), inputs, executor), "small": prepare(small, inputs, executor)}
        times = in_turn(pair, wall_clock, 15)
        again = ratio(times["small"], times["whole"])
        kept = {name: int((~gone).sum()) for name, gone in plan.removed.items()}
        predicted = planner.prediction(kept) / whole if planner.prediction is not None else float("nan")
        note = plan.notes[1] if len(plan.notes) > 1 else ""
        print(f"{part:8.2f} {plan.achieved['latency_ms'] / whole:9.3f} {again:7.3f} {predicted:10.3f}  {note[:60]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--executor", default="eager")
    parser.add_argument("--allocation", default="global")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for batch in options.batch:
            table(batch, options.executor, options.allocation, Path(folder))


if __name__ == "__main__":
    main()
