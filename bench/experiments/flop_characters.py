"""FLOP on Shakespeare: SRU and Transformer-XL at a given size, between the dense net and a dense net as small.

    python bench/experiments/flop_characters.py --data ../shared/data

All train from scratch for the same number of steps on nine tenths of the text, FLOP the last of them without gates; the
loss is bits per character on the last twentieth. The small dense net has the same form and fewer dimensions, so many
that it is no smaller than the pruned one. What is to be seen: the size within 1 % of the budget, the loss between those
of the two dense nets.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from cells import Table, arguments, markdown, mean_std
from torch import nn

import topiarist
from topiarist.data import Segments, read_characters
from topiarist.models import SRULanguageModel, TransformerXL
from topiarist.recover import FineTune, TrainingRecipe, train

LENGTH, BATCH, STEPS, BUDGETS = 64, 32, 1500, (0.5, 0.3)
AFTER = 0.3  # of the steps of FLOP are with the ranks that are left, without gates
NETS: dict[str, tuple[Callable[[int, int], nn.Module], int, int]] = {  # how to make one of so many dimensions; which
    "SRU": (lambda tokens, dim: SRULanguageModel(tokens, dim, num_layers=2), 256, 8),
    "Transformer-XL": (
        lambda tokens, dim: TransformerXL(tokens, dim=dim, num_layers=2, num_heads=4, num_hidden=4 * dim, dropout=0.0),
        128,
        8,
    ),
}


def run(net: str, way: str, budget: float, seed: int, text: Any, steps: int) -> dict[str, Any]:
    """Train one net; its bits per character and its size."""
    tokens, _, test, vocabulary = text
    make, dim, multiple = NETS[net]
    whole = num_params(make(len(vocabulary), dim))
    if way == "small":
        dim = next(
            d for d in range(multiple, dim + 1, multiple) if num_params(make(len(vocabulary), d)) >= budget * whole
        )
    torch.manual_seed(seed)
    model = make(len(vocabulary), dim)
    data = Segments(tokens, BATCH, LENGTH, shuffle=True, seed=seed)
    epochs = steps / len(data)
    found: dict[str, float] = {}
    if way == "FLOP":
        result = topiarist.methods.flop(
            model, tokens[None, :LENGTH], data=data, loss=F.cross_entropy, budget=topiarist.Budget(params=budget),
            epochs=(1 - AFTER) * epochs, lr=2e-3, gate_lr=2e-2, multiplier_lr=0.2, warm_up=0.5,
            recover=FineTune(recipe(AFTER * epochs)),
        )  # fmt: skip
        model, row = result.model, result.curve[-1]
        found = {"expected_sparsity": row["expected_sparsity"], "min_rank": row["min_rank"]}
    else:
        train(model, data, F.cross_entropy, recipe(epochs))
    bits = bits_per_character(model, Segments(test, BATCH, LENGTH))
    size = num_params(model) / whole
    return {"accuracy": bits, "size": size, **found, "summary": f"{bits:.3f} bits at {size:.4f} {found or ''}"}


def recipe(epochs: float) -> TrainingRecipe:
    """Adam at one rate, for every net."""
    return TrainingRecipe(epochs=epochs, lr=2e-3, optimizer="adam")


def num_params(model: nn.Module) -> int:
    """Of all tensors together."""
    return sum(p.numel() for p in model.parameters())


@torch.no_grad()
def bits_per_character(model: nn.Module, segments: Segments) -> float:
    """The mean over all characters of the segments, each without a memory of the one before."""
    model.eval()
    losses = [float(F.cross_entropy(model(inputs), targets)) for inputs, targets in segments]
    return sum(losses) / len(losses) / math.log(2)


def main() -> None:
    """Fill the table, then write it."""
    chosen = arguments(__doc__ or "", "text")
    table = Table("flop_characters", chosen.out)
    text, steps = read_characters(Path(chosen.folder) / "tinyshakespeare.txt"), 60 if chosen.quick else STEPS
    for seed in range(chosen.seeds):
        for net in NETS:
            table.run(f"{net}/dense/1/{seed}", lambda n=net, s=seed: run(n, "dense", 1, s, text, steps))
            for budget in BUDGETS[: 1 if chosen.quick else None]:
                for way in ("FLOP", "small"):
                    key = f"{net}/{way}/{budget:g}/{seed}"
                    table.run(key, lambda n=net, w=way, b=budget, s=seed: run(n, w, b, s, text, steps))
    (chosen.out / "flop_characters.md").write_text(render(table))


def render(table: Table) -> str:
    """The table in Markdown, from the data alone."""
    rows = []
    ways = [("dense", "1"), *((way, f"{budget:g}") for budget in BUDGETS for way in ("FLOP", "small"))]
    for net, (way, budget) in product(NETS, ways):
        cells = [c for k, c in sorted(table.cells.items()) if k.rpartition("/")[0] == f"{net}/{way}/{budget}"]
        ranks = "/".join(f"{c['min_rank']:g}" for c in cells if "min_rank" in c)
        rows.append([net, way, budget, mean_std([c["size"] for c in cells], 4),
                     mean_std([c["accuracy"] for c in cells], 3), ranks])  # fmt: skip
    return "\n".join(
        [
            "# FLOP on Shakespeare\n",
            f"{STEPS:,} steps of {BATCH} segments of {LENGTH} characters: the part of the dense net's parameters, bits "
            "per character on the last twentieth of the text (less is better), and the least rank that is left; mean ± "
            "sample standard deviation over seeds. Generated from `flop_characters.json` by `python "
            "bench/experiments/flop_characters.py --data ../shared/data`.\n",
            markdown(["net", "way", "budget", "size", "bits per character", "least rank"], rows),
        ]
    )


if __name__ == "__main__":
    main()
