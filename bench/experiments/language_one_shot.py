"""A character model on Shakespeare, one shot and without training: six methods at equal size.

    python bench/experiments/language_one_shot.py --data ../shared/data

The models are those of `character_model.py`. Every method leaves the same part of the parameters, what three and what
two of the four blocks have with the embeddings: single weights (magnitude, Wanda, SparseGPT), heads and hidden channels
(FLAP), whole blocks (block drop), ranks (low rank, weighted by inputs). The loss is that on text not seen.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from cells import Table, arguments, markdown, mean_std
from character_model import BLOCKS, NUM_CALIBRATION, STEPS, Text, measured, trained
from torch import nn

from topiarist import Budget
from topiarist.methods import block_drop, flap, low_rank, magnitude, sparsegpt, wanda
from topiarist.pruning import PruneResult

KEPT_BLOCKS = (3, 2)
WEIGHTS: dict[str, Any] = {
    "magnitude": partial(magnitude, scope="layer", recover="none"),
    "Wanda": wanda,
    "SparseGPT": sparsegpt,
}
SHAPES: dict[str, Any] = {
    "FLAP": flap,
    "FLAP, not compensated": partial(flap, recover="none"),
    "block drop": block_drop,
    "low rank, weighted": partial(low_rank, weighted=True, keep=["head"]),
}


def size(model: nn.Module, num_blocks: int) -> float:
    """The part of the parameters that a model of so many blocks has."""
    block = sum(p.numel() for p in model.blocks[0].parameters())  # type: ignore[index, union-attr]
    total = sum(p.numel() for p in model.parameters())
    return 1 - (BLOCKS - num_blocks) * block / total


def pruned(method: str, model: nn.Module, part: float, data: list[torch.Tensor]) -> PruneResult:
    """What the method makes of the model, with this part of its parameters left."""
    run = {**WEIGHTS, **SHAPES}[method]
    if method in SHAPES:
        return run(model, data[0][:2], data=data, budget=Budget(params=part + 1e-6))
    weights = sum(m.weight.numel() for m in model.blocks.modules() if isinstance(m, nn.Linear))  # type: ignore[union-attr]
    sparsity = (1 - part) * sum(p.numel() for p in model.parameters()) / weights
    return run(model, data[0][:2], data=data, keep=["head"], budget=Budget(sparsity=sparsity))


def cut(model: nn.Module, text: Text, seed: int, method: str, num_blocks: int) -> dict[str, Any]:
    """One cell: the loss of what is left, and how large that is."""
    inputs, _ = text.batch(text.train, NUM_CALIBRATION, torch.Generator().manual_seed(1000 + seed))
    result = pruned(method, model, size(model, num_blocks), list(inputs.split(32)))
    return {**measured(result.model, text), "params": result.plan.achieved["params"]}


def main() -> None:
    """Fill the table, then write it."""
    chosen = arguments(__doc__ or "", "text")
    table = Table("language_one_shot", chosen.out)
    text = Text(Path(chosen.folder) / "tinyshakespeare.txt")
    for seed in range(chosen.seeds):
        model = trained(text, seed, 60 if chosen.quick else STEPS)
        table.run(f"{seed}/dense", partial(measured, model, text))
        for method in (*WEIGHTS, *SHAPES):
            for num_blocks in KEPT_BLOCKS[:1] if chosen.quick else KEPT_BLOCKS:
                table.run(f"{seed}/{method}/{num_blocks}", partial(cut, model, text, seed, method, num_blocks))
    (chosen.out / "language_one_shot.md").write_text(render(table), encoding="utf-8")


def render(table: Table) -> str:
    """The table in Markdown, from the data alone."""
    seeds = sorted({key.partition("/")[0] for key in table.cells})
    kept = [n for n in KEPT_BLOCKS if any(key.endswith(f"/{n}") for key in table.cells)]

    def of(name: str, quantity: str, digits: int) -> str:
        return mean_std([table.cells[f"{seed}/{name}"][quantity] for seed in seeds], digits)

    header = ["method", *(column for n in kept for column in (f"loss, {n} blocks' size", "parameters remaining"))]
    rows = [["dense", *(column for _ in kept for column in (of("dense", "loss", 3), "1"))]]
    for method in (*WEIGHTS, *SHAPES):
        columns = ((of(f"{method}/{n}", "loss", 3), of(f"{method}/{n}", "params", 3)) for n in kept)
        rows.append([method, *(column for pair in columns for column in pair)])
    spread = "one seed" if len(seeds) == 1 else f"{len(seeds)} seeds, mean ± sample standard deviation"
    return (
        "# A character model on Shakespeare: one shot, equal size\n\n"
        f"The transformer of [character_model.md](character_model.md); {spread}; {NUM_CALIBRATION} sequences "
        "calibrate, nothing is trained. Single weights that are removed count as such: their models are as large in "
        "memory as before, those of the lower four rows are smaller. Loss in nats a character on text not seen. "
        "Generated from `language_one_shot.json` by "
        "`python bench/experiments/language_one_shot.py --data ../shared/data`.\n\n"
    ) + markdown(header, rows)


if __name__ == "__main__":
    main()
