"""An MLP of masked dense layers on CIFAR-10 (JPEG): layerwise and global, one-shot and iterative magnitude.

    python bench/experiments/masked_mlp_cifar.py --data ../shared/data

The layers are `topiarist.mask.PrunableDense`: the mask multiplies the weight in the forward pass and autograd does
the rest. Every method starts from the same trained net of its seed and trains for the same number of epochs after.
"""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from cells import HERE, Table, arguments, error_rate, markdown, mean_std
from torch import nn

import topiarist
from topiarist.data import load_data
from topiarist.mask import PrunableDense
from topiarist.recover import TrainingRecipe, train

WIDTHS = (3072, 512, 256, 10)
SPARSITIES = (0.8, 0.95, 0.98)
EPOCHS, AFTER, ROUNDS = 10, 6, 3
METHODS = {
    "layerwise, one-shot": ("uniform", 1),
    "layerwise, iterative": ("uniform", ROUNDS),
    "global, one-shot": ("global", 1),
    "global, iterative": ("global", ROUNDS),
}


def masked_mlp() -> nn.Sequential:
    """Flattened images through masked dense layers with ReLU between."""
    layers = [PrunableDense(a, b, activation=nn.ReLU() if b != WIDTHS[-1] else None) for a, b in pairwise(WIDTHS)]
    return nn.Sequential(nn.Flatten(), *layers)


def recipe(epochs: float) -> TrainingRecipe:
    """SGD with momentum and a cosine."""
    return TrainingRecipe(epochs=epochs, lr=0.02, momentum=0.9, weight_decay=5e-4, lr_schedule="cosine")


def prune(model: nn.Module, allocation: str, rounds: int, sparsity: float, data: Any) -> dict[str, Any]:
    """Rounds of: the lowest weights are masked, the rest is trained on."""
    model = copy.deepcopy(model)
    for k in range(1, rounds + 1):
        target = 1 - (1 - sparsity) ** (k / rounds)
        plan = topiarist.plan(
            model, data.example_inputs, saliency="l1", allocation=allocation, budget=topiarist.Budget(sparsity=target)
        )
        for name, removed in plan.masks(model).items():
            layer = model.get_submodule(name.rpartition(".")[0])
            assert isinstance(layer, PrunableDense)  # noqa: S101
            layer.set_mask(~removed)
        train(model, data.train, F.cross_entropy, recipe(AFTER / rounds))
    layers = [m for m in model.modules() if isinstance(m, PrunableDense)]
    error = error_rate(model, data.test)
    return {"error": error, "sparsity_by_layer": [m.sparsity for m in layers], "summary": f"{error:.2f} %"}


def main() -> None:
    """Fill the table, then write it."""
    chosen = arguments(__doc__ or "", "cifar10")
    table = Table("masked_mlp_cifar")
    for seed in range(chosen.seeds):
        keys = [f"{m}/{s:g}/{seed}" for m in METHODS for s in SPARSITIES]
        if f"dense/{seed}" in table.cells and all(key in table.cells for key in keys):
            continue
        data = load_data(chosen.folder, seed=seed, flip=True, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
        torch.manual_seed(seed)
        model = masked_mlp()
        train(model, data.train, F.cross_entropy, recipe(EPOCHS))
        table.run(f"dense/{seed}", lambda model=model, data=data: {"error": error_rate(model, data.test)})
        for method, (allocation, rounds) in METHODS.items():
            for sparsity in SPARSITIES:
                table.run(
                    f"{method}/{sparsity:g}/{seed}",
                    lambda m=model, a=allocation, r=rounds, s=sparsity, d=data: prune(m, a, r, s, d),
                )
    (HERE / "masked_mlp_cifar.md").write_text(render(table))


def render(table: Table) -> str:
    """The table in Markdown, from the data alone."""
    rows = [["dense", *([row(table, "dense/")] * len(SPARSITIES))]]
    rows += [[method, *(row(table, f"{method}/{s:g}/") for s in SPARSITIES)] for method in METHODS]
    text = (
        "# Masked dense layers on CIFAR-10 (JPEG)\n\n"
        f"An MLP {'-'.join(map(str, WIDTHS))} of `PrunableDense` layers. Test error in percentage points at each "
        "sparsity, mean ± sample standard deviation over seeds. Generated from `masked_mlp_cifar.json` by "
        "`python bench/experiments/masked_mlp_cifar.py --data ../shared/data`.\n\n"
    )
    return text + markdown(["method", *(f"{s:g}" for s in SPARSITIES)], rows)


def row(table: Table, prefix: str) -> str:
    """One cell of the table, over seeds."""
    return mean_std([cell["error"] for key, cell in sorted(table.cells.items()) if key.startswith(prefix)])


if __name__ == "__main__":
    main()
