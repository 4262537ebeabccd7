"""The ladder of adversarial neural pruning: LeNet-5 on MNIST, clean and under attack, vulnerability and sparsity.

    python bench/experiments/adversarial_mnist.py --data ../shared/data

Every row starts from the same trained net of its seed and trains for the same epochs on 5,000 images. The attack of
training is PGD with ε = 0.3 in 10 steps, that of the test PGD in 40, on the first 1,000 test images, against the net
with its mask in place and without noise. What is to be seen: V(ANP-VS) < V(AT) < V(standard).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from cells import Table, arguments, markdown, mean_std

import topiarist
from topiarist.data import Batches, load_data
from topiarist.methods.adversarial import VARIANTS
from topiarist.methods.attack import PGD, robustness
from topiarist.models import LeNet5
from topiarist.recover import TrainingRecipe, train

NUM_TRAIN, NUM_TEST, EPOCHS, BATCH = 5_000, 1_000, 15, 64
TRAINED = PGD(0.3, 0.06, 10, bounds=(0, 1))
TESTED = PGD(0.3, 0.01, 40, bounds=(0, 1))
QUANTITIES = ("clean", "attack", "vulnerability", "sparsity", "compression")
PAPER = {"standard": "99.29 / 0", "bp": "99.34 / 0", "at": "99.14 / 88.03", "anp-vs": "99.05 / 91.31"}


def run(variant: str, seed: int, train_data: Batches, test: Batches, epochs: int) -> dict[str, Any]:
    """Train the base net of a seed by one variant, and attack what is left."""
    torch.manual_seed(seed)
    model = LeNet5()
    train(model, train_data, F.cross_entropy, TrainingRecipe(epochs=3, lr=0.05))
    judged: dict[str, float] = {}
    result = topiarist.methods.adversarial(
        model, train_data.examples(), data=train_data, loss=F.cross_entropy, variant=variant, attack=TRAINED,
        epochs=epochs, mask_lr=0.1, divergence=4.0, suppression=0.1, validation=test,
    )  # fmt: skip
    row = result.curve[-1]
    found = robustness(result.model, test, TESTED, F.cross_entropy)
    judged = {"clean": 100 * found.clean, "attack": 100 * found.attack, "vulnerability": row["vulnerability"],
              "sparsity": row["sparsity"], "compression": row["compression"]}  # fmt: skip
    return {**judged, "accuracy": judged["clean"], "summary": ", ".join(f"{k} {v:.3f}" for k, v in judged.items())}


def main() -> None:
    """Fill the table, then write it."""
    chosen = arguments(__doc__ or "", "mnist")
    table = Table("adversarial_mnist", chosen.out)
    num, tested, epochs = (512, 100, 1) if chosen.quick else (NUM_TRAIN, NUM_TEST, EPOCHS)
    for seed in range(chosen.seeds):
        data = load_data(chosen.folder, seed=seed)
        part = Batches(data.train.inputs[:num], data.train.targets[:num], BATCH, shuffle=True, seed=seed)
        test = Batches(data.test.inputs[:tested], data.test.targets[:tested], 250)
        for variant in VARIANTS:
            table.run(f"{variant}/{seed}", lambda v=variant, s=seed, p=part, t=test: run(v, s, p, t, epochs))
    (chosen.out / "adversarial_mnist.md").write_text(render(table))


def render(table: Table) -> str:
    """The table in Markdown, from the data alone."""
    rows = []
    for variant in VARIANTS:
        cells = [c for k, c in sorted(table.cells.items()) if k.startswith(f"{variant}/")]
        if cells:
            found = [mean_std([c[q] for c in cells], 2 if q in ("clean", "attack") else 3) for q in QUANTITIES]
            rows.append([variant, *found, PAPER.get(variant, "")])
    return "\n".join(
        [
            "# Adversarial neural pruning: the ladder on MNIST\n",
            f"LeNet-5, {NUM_TRAIN:,} training images, {EPOCHS} epochs after the same trained net: accuracy in percent, "
            "clean and under PGD-40 with ε = 0.3; vulnerability, the mean distortion of features after masking, under "
            "the attack of training; the fraction of channels removed; mean ± sample standard deviation over seeds. "
            "Generated from `adversarial_mnist.json` by `python bench/experiments/adversarial_mnist.py --data "
            "../shared/data`. Papers' numbers are for all of MNIST, 200 epochs and another LeNet.\n",
            markdown(["net", "clean", "PGD-40", "vulnerability", "sparsity", "compression", "paper"], rows),
        ]
    )


if __name__ == "__main__":
    main()
