"""Pruning from Scratch on Fashion-MNIST and CIFAR-10 (JPEG): widths from random weights against a trained, pruned net.

    python bench/experiments/pruning_from_scratch.py --data ../shared/data

At half the MACs of a small VGG, on 10,000 images: widths by gates on random weights, then as many epochs from scratch
as the other way has in all; the dense net trained, pruned by the norms of its channels and fine-tuned; uniform widths
from scratch. What is to be seen: the first is within 0.5 points of the second, at a search of some epochs without
gradients of weights; and two seeds find about the same widths, narrower where it is deeper. The last epoch is reported,
none is selected.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F
from cells import Table, arguments, error_rate, first, markdown, mean_std

import topiarist
from topiarist.data import Batches, load_data
from topiarist.mask.gates import Gates, ScalarGate
from topiarist.methods.pruning_from_scratch import learn_gates
from topiarist.models import VGG
from topiarist.recover import FineTune, TrainingRecipe, reinitialize, train

SETS = {"Fashion-MNIST": ("fashion_mnist", 1, 0), "CIFAR-10 (JPEG)": ("cifar10", 3, 4)}  # folder, channels, padding
WIDTHS = ((16, 16), (32, 32), (64, 64))
NUM_IMAGES, MACS, EPOCHS, GATE_EPOCHS, RATIO = 10_000, 0.5, 6, 2, 0.3
WAYS = ("dense", "pruned after training", "pruned from scratch", "uniform from scratch")


def recipe(epochs: float) -> TrainingRecipe:
    """The training of every net, for so many epochs."""
    return TrainingRecipe(epochs=epochs, lr=0.05, weight_decay=5e-4, lr_schedule="cosine")


def run(way: str, channels: int, seed: int, data: Any, epochs: int) -> dict[str, Any]:
    """Make and train one net; its test error, MACs and the seconds that were spent before the final training."""
    torch.manual_seed(seed)
    model, x, budget = VGG(WIDTHS, channels), data.example_inputs, topiarist.Budget(macs=MACS)
    options = {"data": data.train, "loss": F.cross_entropy, "budget": budget}
    start, searched, achieved = time.process_time(), 0.0, 1.0
    if way == "pruned from scratch":
        made = topiarist.methods.pruning_from_scratch(
            model, x, gate_epochs=GATE_EPOCHS, ratio=RATIO, seed=seed, **options
        )
        searched, achieved, model = time.process_time() - start, made.plan.achieved["macs"], made.model
        train(model, data.train, F.cross_entropy, recipe(2 * epochs))
    elif way == "uniform from scratch":
        plan = topiarist.plan(model, x, structure="channel", allocation="uniform", budget=budget)
        model, achieved = topiarist.shrink(model, plan, x), plan.achieved["macs"]
        reinitialize(model, seed)
        train(model, data.train, F.cross_entropy, recipe(2 * epochs))
    else:
        train(model, data.train, F.cross_entropy, recipe(epochs))
        searched = time.process_time() - start
        if way == "pruned after training":
            tuning = FineTune(recipe(epochs))
            tuned = topiarist.prune(model, x, structure="channel", saliency="group-l2", recover=tuning, **options)
            model, achieved = tuned.model, tuned.plan.achieved["macs"]
        else:
            train(model, data.train, F.cross_entropy, recipe(epochs))
    error = error_rate(model, data.test)
    return {"error": error, "macs": achieved, "seconds": searched, "summary": f"{error:.2f} % at {achieved:.3f}"}


def search(seed: int, data: Any, num: int) -> dict[str, Any]:
    """The gates of a narrow VGG-16 after 3 epochs of ``num`` images: their means by layer, and the widths they mean."""
    model = topiarist.models.vgg16_bn(width=0.25)
    reinitialize(model, seed)
    gates = Gates(model, data.example_inputs, ScalarGate)
    images = Batches(data.train.inputs[:num], data.train.targets[:num], 64, shuffle=True, seed=seed)
    learn_gates(model, gates, images, F.cross_entropy, ratio=0.2, num_epochs=3)
    ordered = sorted(gates.units, key=lambda units: int(units.layer.rpartition(".")[2]))
    values = [gates[units.name].deterministic() for units in ordered]
    threshold = torch.cat(values).quantile(0.5)
    widths = [int((v > threshold).sum()) for v in values]
    return {"means": [round(float(v.mean()), 4) for v in values], "widths": widths, "summary": str(widths)}


def main() -> None:
    """Fill the table, then write it."""
    chosen = arguments(__doc__ or "", "fashion_mnist")
    table = Table("pruning_from_scratch", chosen.out)
    for name, (folder, channels, pad) in SETS.items():
        for seed in range(chosen.seeds):
            data = load_data(f"{chosen.data}/{folder}", seed=seed, pad=pad, flip=pad > 0)
            first(data, *((1500, 1000) if chosen.quick else (NUM_IMAGES, None)))
            for way in WAYS:
                epochs = 1 if chosen.quick else EPOCHS
                key = f"{name}/{way}/{seed}"
                table.run(key, lambda w=way, c=channels, s=seed, d=data, e=epochs: run(w, c, s, d, e))
    data = load_data(f"{chosen.data}/cifar10")
    for seed in range(2):
        table.run(f"search/{seed}", lambda s=seed: search(s, data, 500 if chosen.quick else 5000))
    (chosen.out / "pruning_from_scratch.md").write_text(render(table))


def render(table: Table) -> str:
    """The table in Markdown, from the data alone."""
    rows = []
    for name in SETS:
        for way in WAYS:
            cells = [c for k, c in sorted(table.cells.items()) if k.startswith(f"{name}/{way}/")]
            error, macs, seconds = (mean_std([c[q] for c in cells], d) for q, d in
                                    (("error", 2), ("macs", 3), ("seconds", 0)))  # fmt: skip
            rows.append([name, way, error, macs, seconds])
    one, other = (table.cells[f"search/{seed}"] for seed in range(2))
    alike = torch.corrcoef(torch.tensor([one["widths"], other["widths"]], dtype=torch.float64))[0, 1]
    means = one["means"]
    half = len(means) // 2
    return "\n".join(
        [
            "# Pruning from Scratch\n",
            f"A VGG of six convolutions at half its MACs, {NUM_IMAGES:,} training images: test error in percentage "
            "points, the part of the MACs, and the CPU seconds before the final training; mean ± sample standard "
            "deviation over seeds. Generated from its data by "
            "`python bench/experiments/pruning_from_scratch.py --data ../shared/data`.\n",
            markdown(["data", "net", "error", "MACs", "CPU seconds before"], rows),
            f"VGG-16 with a quarter of the widths, gates of 3 epochs on CIFAR-10 (JPEG) and random weights: mean gate "
            f"{sum(means[:half]) / half:.3f} in the first half of the layers, "
            f"{sum(means[half:]) / (len(means) - half):.3f} in the second; the widths of two seeds correlate by "
            f"{alike:.2f}.\n",
        ]
    )


if __name__ == "__main__":
    main()
