"""Trace, plan and shrink against Torch-Pruning's graph and prune: the same models, one process, taking turns.

    python benchmarks/tracing.py                          # every model of the sample, a table
    python benchmarks/tracing.py --models resnet50 --rounds 5
    python benchmarks/tracing.py --write                  # and keep the rows, and docs/speed.md

Channels at half sparsity by the L2 norm, uniformly. Ours is `topiarist.trace`, the plan, and `topiarist.shrink` without
a trial run; theirs is ``MagnitudePruner(...)`` with ``GroupMagnitudeImportance(p=2)`` and its ``step()``. Building and
copying the model is not counted, each run begins with a fresh copy and an empty garbage collector, and the time is the
process's own (CPU seconds on one thread), so that other load on the machine counts little. Printed are ratios of the
medians. A model counts where both succeed: the pruned model runs on the example input. Needs torchvision, timm and
torch-pruning, as in the environment that `make zoo` makes; without them there is nothing to compare with.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib.util
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import topiarist
from topiarist.allocation import Uniform
from topiarist.planning import Planner
from topiarist.saliency import Magnitude
from topiarist.structure import Channel

Row = dict[str, Any]
HERE = Path(__file__).parent
RESULTS = HERE / "results" / "tracing.json"
MODELS = {
    "torchvision": (
        "resnet18", "resnet34", "resnet50", "resnext50_32x4d", "vgg11", "vgg16_bn", "alexnet", "densenet121",
        "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large", "mnasnet1_0", "shufflenet_v2_x1_0",
        "squeezenet1_1", "googlenet", "inception_v3", "efficientnet_b0", "efficientnet_b1", "efficientnet_v2_s",
        "regnet_x_400mf", "regnet_y_400mf", "convnext_tiny", "vit_b_16", "vit_b_32",
    ),
    "timm": (
        "convnext_atto", "regnety_002", "resnet26", "resnet50d", "seresnet50", "mobilenetv3_small_100",
        "efficientnet_lite0", "ghostnet_100", "repvgg_a0", "darknet53", "dla34", "fbnetc_100", "lcnet_050",
        "convmixer_768_32", "poolformer_s12", "vit_tiny_patch16_224", "deit_tiny_patch16_224", "mixer_s32_224",
        "resmlp_12_224", "cspresnet50",
    ),
}  # fmt: skip


def main() -> None:
    """Compare, print, and keep what is asked to be kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", help="these alone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prune", action="store_true", help="time topiarist.prune with its proofs as well; slow")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/tracing.json and docs/speed.md")
    chosen = parser.parse_args()
    missing = [name for name in ("torch_pruning", "torchvision", "timm") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"skipped: {', '.join(missing)} cannot be imported, so there is nothing to compare with")
        return
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    sys.path[:0] = [str(HERE.parent / "zoo"), str(HERE / "results")]
    rows: dict[str, Row] = {}
    print(
        f"{'model':28} {'ours/theirs':>11}  {'trace':>6} {'plan':>6} {'shrink':>6} {'+ trial run':>12} {'prune()':>8}"
    )
    for zoo, names in MODELS.items():
        for name in names:
            if not chosen.models or name in chosen.models:
                row = rows[name] = compared(zoo, name, chosen.rounds, chosen.prune)
                print(line(row), flush=True)
                if chosen.write:
                    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
                    store([r for r in kept if r["name"] != name] + [row])
    print(summary(list(rows.values())))
    if chosen.write:
        from page import write_page

        write_page()


def compared(zoo: str, name: str, rounds: int, with_prune: bool = False) -> Row:
    """The medians of both, in CPU seconds, or who failed and why."""
    from families import zoos

    torch.manual_seed(0)
    model, batch = zoos()[zoo].build(name)
    model, x = model.eval(), batch[:1]
    times: dict[str, list[float]] = {}
    row: Row = {"zoo": zoo, "name": name}
    for turn in range(rounds + 1):  # the first one warms up
        for who, run in (("ours", ours), ("theirs", theirs)):
            work = copy.deepcopy(model)
            gc.collect()
            try:
                spent, pruned = run(work, x)
                if turn == 0:
                    pruned.eval()(x)
            except Exception as error:  # whatever either may raise
                return {**row, "failed": who, "reason": f"{type(error).__name__}: {error}"[:200]}
            for part, seconds in spent.items() if turn else ():
                times.setdefault(part, []).append(seconds)
            del work, pruned
    row.update({part: round(statistics.median(seconds), 4) for part, seconds in times.items()})
    row["ours"] = round(statistics.median(map(sum, zip(*(times[p] for p in PARTS), strict=True))), 4)
    return {**row, **beyond(model, x, with_prune)}


PARTS = ("trace", "plan", "shrink")


def ours(model: nn.Module, x: Tensor) -> tuple[dict[str, float], nn.Module]:
    """Trace, plan, shrink."""
    clock = Clock()
    axes = topiarist.trace(model, x)
    clock.lap("trace")
    plan = Planner(model, axes, Channel()).plan(Magnitude(p=2), Uniform(), topiarist.Budget(sparsity=0.5))
    clock.lap("plan")
    small = topiarist.shrink(model, plan)
    clock.lap("shrink")
    return clock.laps, small


def theirs(model: nn.Module, x: Tensor) -> tuple[dict[str, float], nn.Module]:
    """Graph and prune, as Torch-Pruning's readme calls them; in place."""
    import torch_pruning

    layers = [m for m in model.modules() if getattr(m, "out_features", getattr(m, "out_channels", None)) == 1000]
    clock = Clock()
    pruner = torch_pruning.pruner.MagnitudePruner(
        model,
        x,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=0.5,
        ignored_layers=layers[-1:],
    )
    pruner.step()
    clock.lap("theirs")
    return clock.laps, model


def beyond(model: nn.Module, x: Tensor, with_prune: bool) -> Row:
    """What else we do, once: the shrunk model's trial run in both modes; `topiarist.prune` with its proofs."""
    options: Any = {
        "structure": "channel",
        "saliency": "l2",
        "allocation": "uniform",
        "budget": topiarist.Budget(sparsity=0.5),
    }
    plan = topiarist.plan(model, x, **options)
    gc.collect()
    clock = Clock()
    topiarist.shrink(model, plan, x)
    clock.lap("shrink_and_run")
    if with_prune:
        topiarist.prune(model, x, **options)
        clock.lap("prune")
    return {part: round(seconds, 4) for part, seconds in clock.laps.items()}


class Clock:
    """CPU seconds of this process, lap by lap."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self.now: Callable[[], float] = time.process_time
        self.last = self.now()

    def lap(self, name: str) -> None:
        """What has gone by since the last lap has this name."""
        self.laps[name] = self.now() - self.last
        self.last = self.now()


def line(row: Row) -> str:
    """One model, as ratios to theirs."""
    if "failed" in row:
        return f"{row['name']:28} {row['failed']} failed: {row['reason']:.80}"
    parts = "".join(f" {row[part] / row['theirs']:>5.2f}×" for part in PARTS)
    run = (row["trace"] + row["plan"] + row["shrink_and_run"]) / row["theirs"]
    whole = f" {row['prune'] / row['theirs']:>7.2f}×" if "prune" in row else ""
    return f"{row['name']:28} {row['ours'] / row['theirs']:>10.2f}× {parts} {run:>11.2f}×{whole}"


def summary(rows: list[Row]) -> str:
    """The median and the largest ratio."""
    ratios = sorted(row["ours"] / row["theirs"] for row in rows if "failed" not in row)
    if not ratios:
        return "no model on which both succeed"
    return (
        f"{len(ratios)} of {len(rows)} models on which both succeed: median {statistics.median(ratios):.2f}×, "
        f"largest {ratios[-1]:.2f}×, above 1×: {sum(r > 1 for r in ratios)}"
    )


def store(rows: list[Row]) -> None:
    """Keep the rows, one a line."""
    lines = ",\n".join(json.dumps(row, sort_keys=True) for row in sorted(rows, key=lambda r: (r["zoo"], r["name"])))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
