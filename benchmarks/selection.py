"""Global selection over many scores: the ratio of times, and the extra memory per score.

Time. Both sides get the same weights in several modules and mark the lowest |w| at one sparsity, alternately in one
process. torch is measured twice: ``global_unstructured`` as it is called, and the part of it that selects (concatenate,
topk, write the mask). Ours is the magnitudes and `select`. The median of each is taken; only ratios are printed, since
machines differ. Weights are drawn once normal (all scores differ) and once rounded to bfloat16 (ties everywhere).

Memory. A fresh process makes the scores, runs a small selection (so that code and thread pools are loaded), resets the
kernel's high-water mark of resident memory (``5`` to /proc/self/clear_refs), selects, and reads the mark (VmHWM in
/proc/self/status) again. The difference to the resident memory before, over the number of scores, is the extra peak in
bytes per score. The returned masks, one byte per score, are part of it; what is beyond them, the workspace of a step,
does not grow with the scores. Below 10⁷ scores the masks may fit into memory that the small selection left, and the
figure says nothing. Linux only.

    python benchmarks/selection.py              # 10⁸ scores
    python benchmarks/selection.py --num 1e6
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import prune

from topiarist.allocation.select import select

NUM_TENSORS = 5
SPARSITY = 0.9


def make_weights(num: int, ties: bool = False) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = [num * (i + 1) // 15 for i in range(NUM_TENSORS - 1)]
    weights = [torch.randn(size, generator=generator) for size in (*sizes, num - sum(sizes))]
    return [w.to(torch.bfloat16).float() for w in weights] if ties else weights


def as_modules(weights: list[torch.Tensor]) -> list[nn.Module]:
    modules = []
    for weight in weights:
        module = nn.Module()
        module.weight = nn.Parameter(weight, requires_grad=False)
        modules.append(module)
    return modules


def ours(weights: list[torch.Tensor], k: int) -> int:
    masks = select({str(i): weight.abs() for i, weight in enumerate(weights)}, k)
    return sum(int(mask.count_nonzero()) for mask in masks.values())


def torch_prune(weights: list[torch.Tensor], k: int) -> int:
    modules = as_modules(weights)
    prune.global_unstructured([(m, "weight") for m in modules], pruning_method=prune.L1Unstructured, amount=k)
    return sum(m.weight_mask.numel() - int(m.weight_mask.count_nonzero()) for m in modules)


def torch_topk(weights: list[torch.Tensor], k: int) -> int:
    flat = torch.cat(weights)
    mask = torch.ones_like(flat)
    mask[torch.topk(flat.abs(), k, largest=False).indices] = 0
    return flat.numel() - int(mask.count_nonzero())


def seconds(function, weights: list[torch.Tensor], k: int) -> float:
    start = time.perf_counter()
    found = function(weights, k)
    elapsed = time.perf_counter() - start
    if found != k:
        raise AssertionError(f"{function.__name__} marked {found}, asked for {k}")
    return elapsed


def compare(num: int, rounds: int, ties: bool) -> None:
    weights, k = make_weights(num, ties), round(SPARSITY * num)
    sides = (ours, torch_prune, torch_topk)
    times: dict[str, list[float]] = {side.__name__: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            times[side.__name__].append(seconds(side, weights, k))
    median = {name: statistics.median(values) for name, values in times.items()}
    print(
        f"{'ties everywhere' if ties else 'distinct scores'}: global_unstructured takes "
        f"{median['torch_prune'] / median['ours']:.1f} times as long, its selection alone "
        f"{median['torch_topk'] / median['ours']:.1f} times"
    )


def status(field: str) -> int:
    """A field of /proc/self/status in bytes."""
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def print_extra_memory(num: int, who: str, ties: bool) -> None:
    """Run in a process of its own: the extra peak in bytes per score."""
    small, k = make_weights(200_000, ties), round(SPARSITY * num)
    weights = [weight.abs_() for weight in make_weights(num, ties)]
    modules = as_modules(weights)

    def run(tensors: list[torch.Tensor], holders: list[nn.Module], number: int) -> object:
        if who == "ours":
            return select({str(i): tensor for i, tensor in enumerate(tensors)}, number)
        pairs = [(m, "weight") for m in holders]
        return prune.global_unstructured(pairs, pruning_method=prune.L1Unstructured, amount=number)

    run(small, as_modules(small), 100_000)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    result = run(weights, modules, k)
    print((status("VmHWM") - before) / num)
    del result


def extra_memory(num: int, who: str, ties: bool) -> float:
    command = [sys.executable, __file__, "--num", str(num), "--memory-of", who, *(["--ties"] if ties else [])]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num", type=float, default=1e8, help="how many scores (default 1e8)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-of", choices=["ours", "torch"], help=argparse.SUPPRESS)
    parser.add_argument("--ties", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    num = int(options.num)
    if options.memory_of:
        print_extra_memory(num, options.memory_of, options.ties)
        return
    print(f"the lowest {SPARSITY:g} of {num:.3g} scores in {NUM_TENSORS} tensors, {torch.get_num_threads()} threads")
    for ties in (False, True):
        compare(num, options.rounds, ties)
    for ties in (False, True):
        own = extra_memory(num, "ours", ties)
        print(
            f"extra peak memory in bytes per score, {'ties everywhere' if ties else 'distinct scores'}: {own:.2f}, of "
            f"which 1 are the masks and {(own - 1) * num / 1e6:.2f} MB the rest "
            f"(global_unstructured: {extra_memory(num, 'torch', ties):.1f})"
        )


if __name__ == "__main__":
    main()
