"""What multiples of channels gain: one convolution by width, and ResNet-20 cut to the same MACs with round_to 1, 8, 16.

    python benchmarks/rounding.py

All that is compared takes turns in one process; printed are ratios of times (for networks the median over fifths of the
run, with the smallest and largest fifth), never a time. Networks that are compared have the same MACs. The weights are
random, as in latency.py.
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


def networks(option: str, macs: float, batches: list[int], seconds: float) -> None:
    """ResNet-20 cut with each rounding, timed against the one that is not rounded and has as many MACs left."""
    torch.manual_seed(0)
    dense = ResNet(20, option=option)
    for to in (8, 16):
        found = rounded(dense, to, macs)
        other = rounded(dense, 1, found[1]) if found is not None else None
        for batch in batches if found is not None and other is not None else ():
            inputs = torch.randn(batch, 3, 32, 32)
            pair = {"rounded": (found[0], inputs), "other": (other[0], inputs)}
            times = compare(pair, num_threads=1, seconds=seconds)
            fifths = times["rounded"].speedups_over(times["other"])
            gain, spread = times["rounded"].speedup_over(times["other"]), f"{min(fifths):.2f} to {max(fifths):.2f}"
            print(f"{option:>6} {to:>8} {found[1]:>8.3f} {other[1]:>11.3f} {batch:>5} {gain:>6.2f}×  {spread}")


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
    auto = multiple_for(nn.Linear(1, 1))
    print(f"round_to='auto' is {auto} here ({torch.backends.cpu.get_cpu_capability()}), one thread")
    print(f"time per multiply-accumulate of a 3 × 3 convolution, by its channels, against {WIDTHS[-1]}")
    for batch in (1, 16):
        by_width(batch, chosen.seconds)
    print("MACs that remain, and how many times faster the rounded network is than one that is not rounded")
    print(f"{'option':>6} {'round_to':>8} {'rounded':>8} {'not rounded':>11} {'batch':>5} {'faster':>7}  fifths")
    for option in chosen.options:
        for macs in chosen.macs:
            networks(option, macs, chosen.batches, chosen.seconds)


if __name__ == "__main__":
    main()
