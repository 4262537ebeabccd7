"""Lottery tickets on MNIST: LeNet-300-100, of what is left a fifth goes in each of 20 rounds (Frankle, Carbin 2019).

    python bench/experiments/lottery.py --data ../shared/data

Each round starts from the weights of before the training (the ticket), from fresh ones, or from the last ones with the
learning rates replayed; trains for the same epochs on 15,000 images; and the classifier stays whole. The error is that
on the test set after the last step of a round. What is to be seen: with few weights left the ticket is better than
fresh ones.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from cells import Table, arguments, error_rate, markdown, mean_std

import topiarist
from topiarist.data import Batches, load_data
from topiarist.models import LeNet300100
from topiarist.recover import Checkpoints, TrainingRecipe, train
from topiarist.schedule import ConstantFraction

NUM_IMAGES, ROUNDS, FRACTION, EPOCHS = 15_000, 20, 0.2, 10
MEAN, STD = (0.1307,), (0.3081,)
WAYS = {
    "first weights (the ticket)": "rewind",
    "fresh weights": "reinitialize",
    "last weights, rates replayed": "lr-rewind",
}
SHOWN = (1, 5, 10, 13, 15, 18, 20)


def recipe(epochs: float) -> TrainingRecipe:
    """Plain SGD with momentum at a rate that falls as a cosine."""
    return TrainingRecipe(epochs=epochs, lr=0.05, momentum=0.9, lr_schedule="cosine")


def dense_net(seed: int, batches: Batches, epochs: float) -> tuple[torch.nn.Module, Checkpoints]:
    """The trained net of a seed, and its first weights."""
    torch.manual_seed(seed)
    model, checkpoints = LeNet300100(), Checkpoints(steps=[0])
    train(model, batches, F.cross_entropy, recipe(epochs), checkpoints=checkpoints)
    return model, checkpoints


def run(way: str, seed: int, data: Any, batches: Batches, epochs: float, rounds: int) -> dict[str, Any]:
    """All rounds of one way: density and test error after each."""
    model, checkpoints = dense_net(seed, batches, epochs)
    result = topiarist.prune(
        model,
        data.example_inputs,
        recover=WAYS[way],
        schedule=ConstantFraction(FRACTION),
        steps=rounds,
        budget=topiarist.Budget(sparsity=1 - (1 - FRACTION) ** rounds),
        keep=["fc3"],
        data=batches,
        loss=F.cross_entropy,
        recipe=recipe(epochs),
        checkpoints=checkpoints,
        evaluate=lambda net: {"error": error_rate(net, data.test)},
    )
    curve = [{"density": 1 - row["sparsity"], "error": row["error"]} for row in result.curve]
    dense, last = error_rate(model, data.test), curve[-1]["error"]
    return {"dense": dense, "curve": curve, "error": last, "summary": f"{dense:.2f} → {last:.2f} %"}


def main() -> None:
    """Fill the table, then write it."""
    chosen = arguments(__doc__ or "", "mnist")
    table = Table("lottery", chosen.out)
    data = load_data(chosen.folder, mean=MEAN, std=STD)
    inputs, targets = data.train.inputs, data.train.targets
    num, epochs, rounds = (3_000, 1.0, 5) if chosen.quick else (NUM_IMAGES, EPOCHS, ROUNDS)
    for seed in range(chosen.seeds):
        batches = Batches(inputs[:num], targets[:num], batch_size=128, shuffle=True, seed=seed, mean=MEAN, std=STD)
        for way in WAYS:
            table.run(f"{way}/{seed}", partial(run, way, seed, data, batches, epochs, rounds))
    (chosen.out / "lottery.md").write_text(render(table), encoding="utf-8")


def render(table: Table) -> str:
    """The table in Markdown, from the data alone."""
    cells = {way: [c for k, c in sorted(table.cells.items()) if k.startswith(f"{way}/")] for way in WAYS}
    any_curve = next(iter(cells.values()))[0]["curve"]
    shown = [*(n for n in SHOWN if n < len(any_curve)), len(any_curve)]
    header = ["each round from", "dense", *(f"density {any_curve[n - 1]['density']:.3f}" for n in shown)]
    rows = [
        [way, mean_std([c["dense"] for c in found]),
         *(mean_std([c["curve"][n - 1]["error"] for c in found]) for n in shown[:-1]),
         mean_std([c["error"] for c in found])]
        for way, found in cells.items()
    ]  # fmt: skip
    return "\n".join(
        [
            "# Lottery tickets on MNIST\n",
            f"LeNet-300-100 on {NUM_IMAGES:,} images, {FRACTION:g} of the weights left go in each of {ROUNDS} rounds "
            f"(global magnitude, the classifier stays whole), {EPOCHS} epochs a round: test error in points, "
            "mean ± sample standard deviation over seeds, by the part of the prunable weights that is left. Generated "
            "from `lottery.json` by `python bench/experiments/lottery.py --data ../shared/data`.\n",
            markdown(header, rows),
        ]
    )


if __name__ == "__main__":
    main()
