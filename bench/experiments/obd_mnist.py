"""Optimal Brain Damage against magnitude on LeNet-300-100: compression 2 to 128, the same training after each round.

    python bench/experiments/obd_mnist.py --data ../shared/data

On the first 12,000 training images. Each round halves what is left and trains for the same epochs; without training
the masks alone are compared. The Hessian's diagonal is that of its Gauss–Newton part, exactly. What is to be seen: at
high compression the second order keeps more of the accuracy.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from cells import Table, arguments, error_rate, first, markdown, mean_std, trained
from torch import nn

import topiarist
from topiarist.data import load_data
from topiarist.models import LeNet300100
from topiarist.recover import FineTune, NoRecovery, TrainingRecipe, train

NUM_IMAGES, ROUNDS = 12_000, 7
EPOCHS, AFTER = 20, 3
METHODS: dict[str, dict[str, Any]] = {"optimal-brain-damage": {"curvature": "gauss-newton"}, "magnitude": {}}


def recipe(epochs: float, lr: float) -> TrainingRecipe:
    """SGD with momentum and a cosine; no weight decay, so that the end is a minimum of the loss that is expanded."""
    return TrainingRecipe(epochs, lr, momentum=0.9, lr_schedule="cosine")


def dense(seed: int, data: Any, chosen: Any) -> nn.Module:
    """The trained net of one seed; trained once and kept beside the runs."""
    epochs, name = (2, None) if chosen.quick else (EPOCHS, f"obd-{seed}")
    return trained(
        name, LeNet300100, lambda model: train(model, data.train, F.cross_entropy, recipe(epochs, 0.05)), seed
    )


def run(method: str, after: float, seed: int, data: Any, chosen: Any) -> dict[str, Any]:
    """The error after each halving."""
    result = topiarist.methods.METHODS[method].run(
        dense(seed, data, chosen), data.example_inputs, budget=topiarist.Budget(sparsity=1 - 2.0**-ROUNDS),
        schedule="exponential", steps=ROUNDS, recover=FineTune(recipe(after, 0.02)) if after else NoRecovery(),
        data=data.train, loss=F.cross_entropy, evaluate=lambda model: {"error": error_rate(model, data.test)},
        **METHODS[method],
    )  # fmt: skip
    errors = [row["error"] for row in result.curve]
    return {"errors": errors, "error": errors[-1], "summary": ", ".join(f"{e:.2f}" for e in errors)}


def main() -> None:
    """Fill the table, then write it."""
    chosen = arguments(__doc__ or "", "mnist")
    table = Table("obd_mnist", chosen.out)
    for seed in range(chosen.seeds):
        data = load_data(chosen.folder, seed=seed)
        first(data, 640 if chosen.quick else NUM_IMAGES, 500 if chosen.quick else 10_000)
        table.run(f"dense/{seed}", lambda s=seed, d=data: {"error": error_rate(dense(s, d, chosen), d.test)})
        for after in (0, AFTER):
            for method in METHODS:
                key = f"{method}/{after}/{seed}"
                table.run(key, lambda m=method, a=after, s=seed, d=data: run(m, a, s, d, chosen))
    (chosen.out / "obd_mnist.md").write_text(render(table))


def render(table: Table) -> str:
    """The table in Markdown, from the data alone."""
    rows = []
    for after in (0, AFTER):
        for method in METHODS:
            cells = [c for k, c in sorted(table.cells.items()) if k.startswith(f"{method}/{after}/")]
            found = [mean_std([[*c["errors"][:-1], c["error"]][n] for c in cells]) for n in range(ROUNDS)]
            rows.append([method, str(after), *found])
    dense_error = mean_std([c["error"] for k, c in sorted(table.cells.items()) if k.startswith("dense/")])
    return "\n".join(
        [
            "# Optimal Brain Damage and magnitude\n",
            f"LeNet-300-100 on 12,000 images of MNIST, dense {dense_error}: test error in percentage points at growing "
            "compression of the weights, epochs after each round as said; mean ± sample standard deviation over seeds. "
            "Generated from `obd_mnist.json` by `python bench/experiments/obd_mnist.py --data ../shared/data`.\n",
            markdown(["method", "epochs a round", *(f"{2**n}×" for n in range(1, ROUNDS + 1))], rows),
        ]
    )


if __name__ == "__main__":
    main()
