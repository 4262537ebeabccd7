"""How coarse: the convolutions of LeNet-5 at equal sparsity, from single weights to whole maps, and what each stores.

    python bench/experiments/granularity.py --data ../shared/data

The same trained net of a seed, the same epochs after; only the convolutions lose weights. Storage is that of their
values in 32 bits and of the index that says where they are, as small as the structure allows.
"""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from cells import Table, arguments, error_rate, first, markdown, mean_std, trained
from torch import nn

import topiarist
from topiarist.data import load_data
from topiarist.models import LeNet5
from topiarist.recover import FineTune, TrainingRecipe, train
from topiarist.structure import IntraKernel, Pattern, Strided

EPOCHS, AFTER = 4, 2
CONVS = ("conv1.weight", "conv2.weight")
SPARSITIES = (0.5, 0.75)
GRANULARITIES = ("weight", "vector", "pattern", "intra-kernel", "strided", "kernel", "channel")


def structure(name: str, sparsity: float) -> Any:
    """The structure of this name that leaves this fraction of a 5 × 5 kernel."""
    places = round(25 * (1 - sparsity))
    stride = round(1 / (1 - sparsity))
    sized = {"pattern": Pattern(places, 8), "intra-kernel": IntraKernel(places, 8), "strided": Strided(stride)}
    return sized.get(name, name)


def amount(name: str, sparsity: float) -> dict[str, Any]:
    """What makes that much of the convolutions' weights go: patterns say so themselves, maps go from both sides."""
    if name in ("pattern", "intra-kernel", "strided"):
        return {}
    each = 1 - math.sqrt(1 - sparsity) if name == "channel" else sparsity
    return {"budget": topiarist.Budget(sparsity=each)}


def dense(seed: int, data: Any, chosen: Any) -> nn.Module:
    """The trained net of one seed; trained once and kept beside the runs."""
    epochs, name = (1, None) if chosen.quick else (EPOCHS, f"granularity-{seed}")
    return trained(name, LeNet5, lambda model: train(model, data.train, F.cross_entropy, recipe(epochs, 0.02)), seed)


def recipe(epochs: float, lr: float) -> TrainingRecipe:
    """SGD with momentum and a cosine."""
    return TrainingRecipe(epochs, lr, momentum=0.9, weight_decay=5e-4, lr_schedule="cosine")


def run(name: str, sparsity: float, seed: int, data: Any, chosen: Any) -> dict[str, Any]:
    """The errors before and after training on, the part of the convolutions' weights that is left, and its storage."""
    model = dense(seed, data, chosen)
    options = {"structure": structure(name, sparsity), "allocation": "uniform", "saliency": "l2", "keep": ["fc*"],
               **amount(name, sparsity)}  # fmt: skip
    plain = topiarist.prune(model, data.example_inputs, **options)
    tuned = topiarist.prune(
        model, data.example_inputs, data=data.train, loss=F.cross_entropy,
        recover=FineTune(recipe(1 if chosen.quick else AFTER, 0.01)), **options,
    )  # fmt: skip
    found = dict(plain.model.named_parameters())
    whole = sum(dict(model.named_parameters())[n].numel() for n in CONVS)
    left = sum(int(found[n].count_nonzero()) for n in CONVS) / whole
    error = error_rate(tuned.model, data.test)
    return {"error": error, "before": error_rate(plain.model, data.test), "left": left,
            "bytes": storage(name, sparsity, model, left * whole),
            "summary": f"{error:.2f} %, {left:.3f} left"}  # fmt: skip


def storage(name: str, sparsity: float, model: nn.Module, num_left: float) -> float:
    """Bytes of the values that are left and of their index."""
    bits = 0.0
    for weight in (dict(model.named_parameters())[n] for n in CONVS):
        maps, kernels, places = weight.shape[1], weight.shape[0] * weight.shape[1], weight.shape[2] * weight.shape[3]
        bits += {
            "weight": weight.numel(),  # a bit each
            "vector": weight.numel() / weight.shape[3],
            "kernel": kernels,
            "pattern": kernels * math.log2(8),  # which of the library, kept once
            "intra-kernel": kernels * math.log2(8) + 8 * places,  # which set, and the sets' patterns
            "strided": maps * math.ceil(math.log2(round(1 / (1 - sparsity)))),  # an offset for each source map
            "channel": 0,
        }[name]
    return 4 * num_left + bits / 8


def main() -> None:
    """Fill the table, then write it."""
    chosen = arguments(__doc__ or "", "mnist")
    table = Table("granularity", chosen.out)
    for seed in range(chosen.seeds):
        data = load_data(chosen.folder, seed=seed)
        if chosen.quick:
            first(data, 1000, 500)
        table.run(f"dense/{seed}", lambda s=seed, d=data: {"error": error_rate(dense(s, d, chosen), d.test)})
        for sparsity in SPARSITIES:
            for name in GRANULARITIES:
                key = f"{name}/{sparsity:g}/{seed}"
                table.run(key, lambda n=name, p=sparsity, s=seed, d=data: run(n, p, s, d, chosen))
    (chosen.out / "granularity.md").write_text(render(table))


def render(table: Table) -> str:
    """The table in Markdown, from the data alone."""
    before = mean_std([c["error"] for k, c in sorted(table.cells.items()) if k.startswith("dense/")])
    text = [
        "# Granularity\n",
        f"LeNet-5 on MNIST, dense {before}: test error in percentage points with the convolutions pruned, mean ± "
        "sample standard deviation over seeds; bytes of their values and index. Generated from `granularity.json` by "
        "`python bench/experiments/granularity.py --data ../shared/data`.\n",
    ]
    for sparsity in SPARSITIES:
        rows = []
        for name in GRANULARITIES:
            cells = [c for k, c in sorted(table.cells.items()) if k.startswith(f"{name}/{sparsity:g}/")]
            errors = (mean_std([c[unit] for c in cells]) for unit in ("before", "error"))
            kept = mean_std([c["left"] for c in cells], 3), mean_std([c["bytes"] for c in cells], 0)
            rows.append([name, *kept, *errors])
        text += [f"## {sparsity:g} of the weights removed\n",
                 markdown(["unit", "weights left", "bytes", "error before training", "after"], rows)]  # fmt: skip
    return "\n".join(text)


if __name__ == "__main__":
    main()
