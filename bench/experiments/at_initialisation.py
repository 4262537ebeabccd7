"""Pruning before training: five criteria at three densities, LeNet-300-100 on 15,000 images of MNIST.

    python bench/experiments/at_initialisation.py --data ../shared/data

All criteria of a seed prune the same untrained net, which is then trained in the same way; the test error is that after
the last step: no selection on the test set. Layers are pruned without exception, biases are not. What is to be seen, at
one weight in a hundred: SynFlow before SNIP, these before GraSP and magnitude, all before random.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from cells import Table, arguments, error_rate, markdown, mean_std

import topiarist
from topiarist.data import Batches, load_data
from topiarist.methods import grasp, magnitude, random_pruning, snip, synflow
from topiarist.models import LeNet300100
from topiarist.recover import FineTune, TrainingRecipe

NUM_IMAGES, BATCH = 15_000, 128
RECIPE = TrainingRecipe(epochs=3, lr=1e-3, optimizer="adam")
MEAN, STD = (0.1307,), (0.3081,)
DENSITIES = (0.05, 0.01, 0.003)
METHODS: dict[str, Any] = {
    "random": partial(random_pruning, allocation="uniform", recover=FineTune(RECIPE)),
    "magnitude": partial(magnitude, recover=FineTune(RECIPE)),
    "SNIP": partial(snip, recipe=RECIPE),
    "GraSP": partial(grasp, recipe=RECIPE),
    "SynFlow": partial(synflow, recipe=RECIPE),
}


def untrained(seed: int) -> torch.nn.Module:
    """A net with weights of Glorot and Bengio 2010, and no biases yet."""
    torch.manual_seed(seed)
    model = LeNet300100()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_normal_(module.weight)
            torch.nn.init.zeros_(module.bias)
    return model


def run(method: str, density: float, seed: int, data: Any, num_images: int) -> dict[str, Any]:
    """Prune and train one net; its test error, and the part of the weights that each layer has."""
    inputs, targets = data.train.inputs[:num_images], data.train.targets[:num_images]
    batches = Batches(inputs, targets, batch_size=BATCH, shuffle=True, seed=seed, mean=MEAN, std=STD)
    options = {"seed": seed} if method == "random" else {}
    budget = topiarist.Budget(sparsity=1 - density)
    result = METHODS[method](
        untrained(seed), data.example_inputs, data=batches, loss=F.cross_entropy, budget=budget, **options
    )
    error = error_rate(result.model, data.test)
    densities = [float((~gone).double().mean()) for gone in result.plan.removed.values()]
    return {"error": error, "densities": densities, "summary": f"{error:.2f} % with {densities}"}


def main() -> None:
    """Fill the table, then write it."""
    chosen = arguments(__doc__ or "", "mnist")
    table = Table("at_initialisation", chosen.out)
    data = load_data(chosen.folder, mean=MEAN, std=STD)
    num_images = 2_000 if chosen.quick else NUM_IMAGES
    for seed in range(chosen.seeds):
        for density in DENSITIES[1:2] if chosen.quick else DENSITIES:
            for method in METHODS:
                table.run(f"{method}/{density:g}/{seed}", partial(run, method, density, seed, data, num_images))
    (chosen.out / "at_initialisation.md").write_text(render(table), encoding="utf-8")


def render(table: Table) -> str:
    """The table in Markdown, from the data alone."""
    densities = [d for d in DENSITIES if any(f"/{d:g}/" in key for key in table.cells)]
    rows, layers = [], []
    for method in METHODS:
        cells = [[c for k, c in sorted(table.cells.items()) if k.startswith(f"{method}/{d:g}/")] for d in densities]
        rows.append([method, *(mean_std([c["error"] for c in found]) for found in cells)])
        layers.append([method, *(" / ".join(f"{d:.3g}" for d in found[0]["densities"]) for found in cells)])
    header = ["criterion", *(f"density {d:g}" for d in densities)]
    return "\n".join(
        [
            "# Pruning before training\n",
            f"LeNet-300-100 on the first {NUM_IMAGES:,} training images of MNIST, {RECIPE.epochs} epochs of Adam after "
            "the cut: test error in percentage points, mean ± sample standard deviation over seeds, by the part of the "
            "weights that is left. Generated from `at_initialisation.json` by "
            "`python bench/experiments/at_initialisation.py --data ../shared/data`.\n",
            markdown(header, rows),
            "The part of the weights that is left of each of the three layers, first seed:\n",
            markdown(header, layers),
        ]
    )


if __name__ == "__main__":
    main()
