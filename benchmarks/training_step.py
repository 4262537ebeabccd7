"""A training step of a masked ResNet-20 against the dense step, with `torch.nn.utils.prune` beside it.

    python benchmarks/training_step.py

SGD with momentum, sparsity 0.9, one batch of 128 CIFAR-sized images. The three are timed interleaved in one process,
round after round, and the ratios of the medians are printed.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import topiarist
from topiarist.models import MODELS

SPARSITY = 0.9


def main() -> None:
    """Time and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--batch", type=int, default=128)
    chosen = parser.parse_args()
    torch.manual_seed(0)
    inputs, targets = torch.randn(chosen.batch, 3, 32, 32), torch.randint(10, (chosen.batch,))
    dense = MODELS["resnet20"]()
    steps = {
        "dense": step(copy.deepcopy(dense), inputs, targets),
        "topiarist.mask": step(topiarist_masked(dense, inputs), inputs, targets),
        "torch.nn.utils.prune": step(torch_masked(dense), inputs, targets),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(3):
        for run in steps.values():
            run()
    for _ in range(chosen.rounds):
        for name, run in steps.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    base = statistics.median(times["dense"])
    print(f"training step of ResNet-20, batch {chosen.batch}, {torch.get_num_threads()} threads; dense = 1")
    for name in steps:
        ratios = [t / d for t, d in zip(times[name], times["dense"], strict=True)]
        print(f"  {name:22} {statistics.median(times[name]) / base:.3f}  (median of paired ratios "
              f"{statistics.median(ratios):.3f})")  # fmt: skip


def topiarist_masked(dense: nn.Module, inputs: Tensor) -> nn.Module:
    """A copy masked by ours."""
    model = copy.deepcopy(dense)
    return topiarist.mask(model, topiarist.plan(model, inputs[:1], budget=topiarist.Budget(sparsity=SPARSITY)))


def torch_masked(dense: nn.Module) -> nn.Module:
    """A copy masked by torch's own utility, on the same tensors."""
    model = copy.deepcopy(dense)
    weights = [(m, "weight") for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    torch_prune.global_unstructured(weights, torch_prune.L1Unstructured, amount=SPARSITY)
    return model


def step(model: nn.Module, inputs: Tensor, targets: Tensor) -> Callable[[], None]:
    """One training step, as a function."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    model.train()

    def run() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()

    return run


if __name__ == "__main__":
    main()
