"""NoiseOut on LeNet-300-100 and LeNet-5: what goes at equal accuracy, with noise outputs of each kind and without.

    python bench/experiments/noiseout_mnist.py --data ../shared/data

A step is undone when the accuracy on the last 10,000 training images, which are not trained on, falls by more than half
a point; the error is that of the test images.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from cells import Table, arguments, error_rate, first, markdown, mean_std
from torch import nn

import topiarist
from topiarist.data import load_data
from topiarist.data.loader import Batches
from topiarist.measure import evaluate
from topiarist.models import LeNet5, LeNet300100
from topiarist.recover import TrainingRecipe

DROP = 0.005
NOISE = {"none": (0, "gaussian"), **{targets: (512, targets) for targets in ("gaussian", "binomial", "constant")}}


class Setting(NamedTuple):
    """How far, in how many steps, with how many epochs before and after each."""

    build: Callable[[], nn.Module]
    budget: topiarist.Budget
    epochs: int
    after: int
    steps: int
    kinds: tuple[str, ...]


NETS = {
    "LeNet-300-100": Setting(LeNet300100, topiarist.Budget(sparsity=0.95), 10, 4, 16, tuple(NOISE)),
    "LeNet-5": Setting(LeNet5, topiarist.Budget(params=0.02), 6, 2, 12, ("none", "gaussian")),
}


def run(net: str, noise: str, seed: int, data: Any, chosen: Any) -> dict[str, Any]:
    """What is left of one net, and its error."""
    (num_noise, targets), setting = NOISE[noise], NETS[net]
    num_held = len(data.train.inputs) // 6
    held = Batches(data.train.inputs[-num_held:], data.train.targets[-num_held:], 500)
    batches = Batches(data.train.inputs[:-num_held], data.train.targets[:-num_held], 128, shuffle=True, seed=seed)
    torch.manual_seed(seed)
    result = topiarist.methods.noiseout(
        setting.build(), data.example_inputs, num_noise=num_noise, targets=targets, drop=DROP, steps=setting.steps,
        schedule="exponential", budget=setting.budget, data=batches, loss=F.cross_entropy,
        recipe=recipe(1 if chosen.quick else setting.epochs, 0.05), each=recipe(setting.after, 0.02),
        judge=partial(evaluate, data=held, loss=F.cross_entropy),
    )  # fmt: skip
    error = error_rate(result.model, data.test)
    layers = [m for m in result.model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    widths = [len(layer.weight) for layer in layers]
    return {"error": error, "params": result.plan.achieved["params"], "widths": widths,
            "summary": f"{error:.2f} %, {result.plan.achieved['params']:.3f} of the parameters, {widths}"}  # fmt: skip


def recipe(epochs: float, lr: float) -> TrainingRecipe:
    """SGD with momentum and a cosine."""
    return TrainingRecipe(epochs, lr, momentum=0.9, lr_schedule="cosine")


def main() -> None:
    """Fill the table, then write it."""
    chosen = arguments(__doc__ or "", "mnist")
    table = Table("noiseout_mnist", chosen.out)
    for seed in range(chosen.seeds):
        data = load_data(chosen.folder, seed=seed)
        if chosen.quick:
            first(data, 3000, 1000)
        for net, setting in NETS.items():
            for noise in setting.kinds:
                key = f"{net}/{noise}/{seed}"
                table.run(key, lambda t=net, n=noise, s=seed, d=data: run(t, n, s, d, chosen))
    (chosen.out / "noiseout_mnist.md").write_text(render(table))


def render(table: Table) -> str:
    """The table in Markdown, from the data alone."""
    rows = []
    for net, setting in NETS.items():
        for noise in setting.kinds:
            cells = [c for k, c in sorted(table.cells.items()) if k.startswith(f"{net}/{noise}/")]
            widths = "; ".join("-".join(str(w) for w in c["widths"]) for c in cells)
            left, error = mean_std([c["params"] for c in cells], 4), mean_std([c["error"] for c in cells])
            rows.append([net, noise, left, widths, error])
    return "\n".join(
        [
            "# NoiseOut\n",
            "MNIST, pairs of neurons and of feature maps merged while the accuracy on held-out images stays within "
            "half a point: the part of the parameters that is left, the widths, and the test error in percentage "
            "points; mean ± sample standard deviation over seeds. Generated from `noiseout_mnist.json` by "
            "`python bench/experiments/noiseout_mnist.py --data ../shared/data`.\n",
            markdown(["net", "noise outputs", "parameters left", "widths", "error"], rows),
        ]
    )


if __name__ == "__main__":
    main()
