"""What collecting statistics costs over the passes that it takes anyway, on ResNet-20.

    python benchmarks/collecting.py

Each statistic is collected over one batch of CIFAR-sized images, interleaved in one process with the bare passes in
evaluation mode, round after round: the forward pass, or forward and backward. The medians of paired ratios of CPU time
are printed (a shared machine disturbs it less than the clock on the wall; run with one thread);
the line to hold is 1.2 for those that need no passes of their own. Below it, what is dearer by its nature.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from topiarist.models import MODELS
from topiarist.planning import Planner
from topiarist.stats import Need, Subject, collect, start
from topiarist.stats.curvature import HessianGradient
from topiarist.stats.diagonal import HessianDiagonal
from topiarist.structure import Channel

STREAMED: list[tuple[Need, ...]] = [
    ("gradients",),
    ("squared gradients",),
    ("gate gradients",),
    ("gradients", "squared gradients", "gate gradients"),
    ("activations",),
    ("gram",),
]
DEAR: list[tuple[Need, ...]] = [
    ("squared gradients of examples",),
    (HessianDiagonal("gauss-newton"),),
    (HessianDiagonal("hutchinson", num_probes=1),),
    (HessianGradient(),),
    ("flow",),
]


def main() -> None:
    """Time and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--dear", action="store_true", help="also what takes passes of its own, on a small batch")
    chosen = parser.parse_args()
    torch.manual_seed(0)
    model = MODELS["resnet20"]().eval()
    compare(model, STREAMED, chosen.batch, chosen.rounds)
    if chosen.dear:
        compare(model, DEAR, 8, 3)


def compare(model: nn.Module, needs: list[tuple[Need, ...]], batch: int, rounds: int) -> None:
    """Print the median of paired ratios for each set of statistics."""
    inputs, targets = torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,))
    planner = Planner.of(model, inputs[:1], Channel(), (), None)
    subject = Subject(model, planner.units, planner.axes, inputs[:1])
    print(f"ResNet-20, batch {batch}, {torch.get_num_threads()} threads; bare passes = 1")
    for need in needs:
        reads_loss = any(s.reads != "inputs" for s in start(need, subject).values())
        base = forward_backward(model, inputs, targets) if reads_loss else forward(model, inputs)
        ratio = paired(base, collecting(need, subject, inputs, targets), rounds)
        name = " + ".join(map(str, need))
        print(f"  {name:60} {ratio:.3f} × {'forward and backward' if reads_loss else 'forward'}")


def collecting(need: tuple[Need, ...], subject: Subject, inputs: Tensor, targets: Tensor) -> Callable[[], None]:
    """One collection over one batch, as a function."""

    def run() -> None:
        collect(start(need, subject).values(), subject, [(inputs, targets)], F.cross_entropy)

    return run


def forward(model: nn.Module, inputs: Tensor) -> Callable[[], None]:
    """The bare forward pass."""

    def run() -> None:
        with torch.no_grad():
            model(inputs)

    return run


def forward_backward(model: nn.Module, inputs: Tensor, targets: Tensor) -> Callable[[], None]:
    """The bare forward and backward pass."""
    parameters = [*model.parameters()]

    def run() -> None:
        torch.autograd.grad(F.cross_entropy(model(inputs), targets), parameters)

    return run


def paired(base: Callable[[], None], run: Callable[[], None], rounds: int) -> float:
    """The median over rounds of one time over the other, taken right after it."""
    ratios = []
    for number in range(rounds + 1):
        times = []
        for part in (base, run):
            begun = time.process_time()
            part()
            times.append(time.process_time() - begun)
        if number:  # the first round warms up
            ratios.append(times[1] / times[0])
    return statistics.median(ratios)


if __name__ == "__main__":
    main()
