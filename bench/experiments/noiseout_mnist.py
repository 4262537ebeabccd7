"""NoiseOut on LeNet-300-100: how many neurons go at equal accuracy, with noise outputs of each kind and without.

    python bench/experiments/noiseout_mnist.py --data ../shared/data

A step is undone when the accuracy on the last 10,000 training images, which are not trained on, falls by more than half
a point; the error is that of the test images.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from cells import Table, arguments, error_rate, first, markdown, mean_std
from torch import nn

import topiarist
from topiarist.data import load_data
from topiarist.data.loader import Batches
from topiarist.measure import evaluate
from topiarist.models import LeNet300100
from topiarist.recover import TrainingRecipe

EPOCHS, AFTER, STEPS = 10, 4, 16
DROP, SPARSITY = 0.005, 0.95
NOISE = {"none": (0, "gaussian"), **{targets: (512, targets) for targets in ("gaussian", "binomial", "constant")}}


def run(noise: str, seed: int, data: Any, chosen: Any) -> dict[str, Any]:
    """What is left of one net, and its error."""
    num_noise, targets = NOISE[noise]
    num_held = len(data.train.inputs) // 6
    held = Batches(data.train.inputs[-num_held:], data.train.targets[-num_held:], 500)
    batches = Batches(data.train.inputs[:-num_held], data.train.targets[:-num_held], 128, shuffle=True, seed=seed)
    torch.manual_seed(seed)
    result = topiarist.methods.noiseout(
        LeNet300100(), data.example_inputs, num_noise=num_noise, targets=targets, drop=DROP, steps=STEPS,
        schedule="exponential", budget=topiarist.Budget(sparsity=SPARSITY), data=batches, loss=F.cross_entropy,
        recipe=recipe(1 if chosen.quick else EPOCHS, 0.05), each=recipe(AFTER, 0.02),
        judge=partial(evaluate, data=held, loss=F.cross_entropy),
    )  # fmt: skip
    error = error_rate(result.model, data.test)
    widths = [m.out_features for m in result.model.modules() if isinstance(m, nn.Linear)]
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
        for noise in NOISE:
            table.run(f"{noise}/{seed}", lambda n=noise, s=seed, d=data: run(n, s, d, chosen))
    (chosen.out / "noiseout_mnist.md").write_text(render(table))


def render(table: Table) -> str:
    """The table in Markdown, from the data alone."""
    rows = []
    for noise in NOISE:
        cells = [c for k, c in sorted(table.cells.items()) if k.startswith(f"{noise}/")]
        widths = "; ".join("-".join(str(w) for w in c["widths"]) for c in cells)
        rows.append([noise, mean_std([c["params"] for c in cells], 4), widths, mean_std([c["error"] for c in cells])])
    return "\n".join(
        [
            "# NoiseOut\n",
            "LeNet-300-100 on MNIST, pairs of neurons merged while the accuracy on held-out images stays within half a "
            "point: the part of the parameters that is left, the widths, and the test error in percentage points; mean "
            "± sample standard deviation over seeds. Generated from `noiseout_mnist.json` by "
            "`python bench/experiments/noiseout_mnist.py --data ../shared/data`.\n",
            markdown(["noise outputs", "parameters left", "widths", "error"], rows),
        ]
    )


if __name__ == "__main__":
    main()
