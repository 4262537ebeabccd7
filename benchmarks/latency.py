"""Shrunk against dense: ResNet-20 with channels cut to half the MACs, at batch 1 and 64, theoretical beside measured.

    python benchmarks/latency.py

Dense and shrunk take turns in one process, in blocks of about a millisecond or one call; printed is the ratio of times
(the median over fifths of the run, with the smallest and largest fifth), never a time. The weights are random, as the
time of a dense kernel does not depend on them; which channels go, and so the widths that remain, does.
"""

from __future__ import annotations

import argparse

import torch

import topiarist
from topiarist.measure import measure
from topiarist.models import build


def main() -> None:
    """Prune, time, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="about how long to time each model")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    chosen = parser.parse_args()
    torch.manual_seed(0)
    dense = build("resnet20")
    result = topiarist.prune(
        dense,
        torch.randn(1, 3, 32, 32),
        structure="channel",
        saliency="l2",
        allocation="global",
        budget=topiarist.Budget(macs=0.5),
    )
    widths = [m.out_channels for m in result.model.modules() if isinstance(m, torch.nn.Conv2d)]
    print(f"ResNet-20, channels at half the MACs (L2, global); widths {widths}")
    print(f"{'batch':>5} {'threads':>7} {'theoretical':>11} {'measured':>8}  fifths of the run")
    verdicts = []
    for batch in chosen.batches:
        inputs = torch.randn(batch, 3, 32, 32)
        for num_threads in sorted({1, torch.get_num_threads()}):
            found = measure(result.model, inputs, baseline=dense, num_threads=num_threads, seconds=chosen.seconds)
            spread = f"{min(found.speedups):.2f} to {max(found.speedups):.2f}"
            ratios = f"{found.theoretical_speedup:>10.2f}× {found.measured_speedup:>7.2f}×"
            print(f"{batch:>5} {num_threads:>7} {ratios}  {spread}")
            verdicts.append(found.verdict())
    print("\n".join(verdicts))


if __name__ == "__main__":
    main()
