"""What multiples of channels gain: one convolution by width, and ResNet-20 cut to the same MACs with round_to 1, 8, 16.

    python benchmarks/rounding.py

All that is compared takes turns in one process; printed are ratios of times (for networks the median over fifths of the
run, with the smallest and largest fifth), never a time. What rounding gains is the part of the theoretical speed-up
that is measured. The weights are random, as in latency.py.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

import topiarist
from topiarist.measure.latency import compare
from topiarist.models import ResNet
from topiarist.structure.rounding import multiple_for

WIDTHS = (16, 20, 24, 28, 32, 40, 48, 56, 64)


def by_width(batch: int, seconds: float) -> None:
    """The time that a multiply-accumulate of a 3 × 3 convolution takes, by its width, against the widest."""
    layers = {w: (nn.Conv2d(w, w, 3, padding=1, bias=False), torch.randn(batch, w, 16, 16)) for w in WIDTHS}
    times = compare({str(w): pair for w, pair in layers.items()}, num_threads=1, seconds=seconds)
    each = {w: times[str(w)].quiet_ms / w**2 for w in WIDTHS}
    print(f"batch {batch}: " + "  ".join(f"{w}: {each[w] / each[WIDTHS[-1]]:.2f}" for w in WIDTHS))


def rounded(dense: nn.Module, round_to: int, macs: float) -> tuple[nn.Module, float] | None:
    """The network cut to ``macs`` of the MACs or fewer, and the fraction that remains; None where none is."""
    inputs = torch.randn(1, 3, 32, 32)
    budget = topiarist.Budget(macs=macs)
    try:
        plan = topiarist.plan(dense, inputs, structure="channel", budget=budget, round_to=round_to)
    except topiarist.errors.BudgetError as error:
        print(f"round_to {round_to}: {str(error).partition(':')[0]}")
        return None
    return topiarist.shrink(dense, plan, inputs), plan.achieved["macs"]


def networks(option: str, macs: float, batch: int, seconds: float) -> None:
    """ResNet-20 cut with each rounding, timed against the dense one."""
    dense = ResNet(20, option=option)
    inputs = torch.randn(batch, 3, 32, 32)
    cut = {to: found for to in (1, 8, 16) if (found := rounded(dense, to, macs)) is not None}
    models = {"dense": (dense, inputs), **{str(to): (model, inputs) for to, (model, _) in cut.items()}}
    times = compare(models, num_threads=1, seconds=seconds)
    for to, (_, remains) in cut.items():
        fifths = times[str(to)].speedups_over(times["dense"])
        measured = times[str(to)].speedup_over(times["dense"])
        spread = f"{min(fifths):.2f} to {max(fifths):.2f}"
        print(f"{option:>6} {macs:>5} {batch:>5} {to:>8} {1 / remains:>10.2f}× {measured:>7.2f}×  {spread}")


def main() -> None:
    """Time, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="about how long to time each comparison")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--macs", type=float, nargs="+", default=[0.5, 0.3])
    parser.add_argument(
        "--options", nargs="+", default=["A", "B"], help="shortcuts; A divides its sums into small axes"
    )
    chosen = parser.parse_args()
    torch.manual_seed(0)
    auto = multiple_for(nn.Linear(1, 1))
    print(f"round_to='auto' is {auto} here ({torch.backends.cpu.get_cpu_capability()}), one thread")
    print(f"time per multiply-accumulate of a 3 × 3 convolution, by its channels, against {WIDTHS[-1]}")
    for batch in chosen.batches:
        by_width(batch, chosen.seconds)
    print(
        f"{'option':>6} {'MACs':>5} {'batch':>5} {'round_to':>8} {'theoretical':>11} {'measured':>8}  fifths of the run"
    )
    for option in chosen.options:
        for macs in chosen.macs:
            for batch in chosen.batches:
                networks(option, macs, batch, chosen.seconds)


if __name__ == "__main__":
    main()
