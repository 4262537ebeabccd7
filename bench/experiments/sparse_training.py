"""Sparse from the first step: RigL and SET against a static random mask, LeNet-300-100 on 15,000 images of MNIST.

    python bench/experiments/sparse_training.py --data ../shared/data

All start from the same random weights and the same random mask of their seed (Erdős–Rényi densities, Evci et al.
2020), and train for the same 900 steps of SGD; only where the mask moves to differs. The test error is that after the
last step: no selection on the test set. What is to be seen: RigL is better than SET, and SET than the static mask.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from cells import HERE, Table, arguments, error_rate, markdown, mean_std

import topiarist
from topiarist.data import Batches, load_data
from topiarist.mask import Regrower
from topiarist.models import LeNet300100
from topiarist.saliency import Random

NUM_IMAGES, NUM_STEPS, BATCH, LR, MOMENTUM = 15_000, 900, 128, 0.05, 0.9
END, EVERY, FRACTION = 675, 25, 0.3
MEAN, STD = (0.1307,), (0.3081,)
DENSITIES = (0.02, 0.01)
METHODS: dict[str, str | None] = {"static mask": None, "SET": "random", "RigL": "gradient"}


def run(method: str, density: float, seed: int, data: Any) -> dict[str, Any]:
    """Train one sparse net and return its test error and how many weights it has."""
    model = dense_net(seed)
    plan = topiarist.plan(
        model,
        data.example_inputs,
        saliency=Random(seed=seed),
        allocation="erk",
        budget=topiarist.Budget(sparsity=1 - density),
    )
    grow = METHODS[method]
    regrower = None if grow is None else Regrower(
        model, plan, end=END, every=EVERY, fraction=FRACTION, grow=grow, seed=seed  # type: ignore[arg-type]
    )  # fmt: skip
    if regrower is None:
        topiarist.mask(model, plan)
    train(model, regrower, batches(data, seed))
    error = error_rate(model, data.test)
    num_left = sum(int(p.count_nonzero()) for name, p in model.named_parameters() if name in plan.removed)
    topiarist.unmask(model, restore=False)
    return {"error": error, "num_weights": num_left, "summary": f"{error:.2f} % with {num_left} weights"}


def dense_net(seed: int) -> torch.nn.Module:
    """A net with the weights of He et al. 2015 and no biases: torch's own are too small for so few of them."""
    torch.manual_seed(seed)
    model = LeNet300100()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            torch.nn.init.zeros_(module.bias)
    return model


def batches(data: Any, seed: int) -> Batches:
    """The first images of the training set."""
    inputs, targets = data.train.inputs[:NUM_IMAGES], data.train.targets[:NUM_IMAGES]
    return Batches(inputs, targets, batch_size=BATCH, shuffle=True, seed=seed, mean=MEAN, std=STD)


def train(model: torch.nn.Module, regrower: Regrower | None, train_data: Batches) -> None:
    """900 steps of SGD with momentum, the learning rate falling as a cosine."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, NUM_STEPS)
    model.train()
    step = epoch = 0
    while step < NUM_STEPS:
        train_data.set_epoch(epoch)
        epoch += 1
        for x, y in train_data:
            if step == NUM_STEPS:
                break
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            if regrower is not None:
                regrower.step()
            falling.step()
            step += 1


def main() -> None:
    """Fill the table, then write it."""
    chosen = arguments(__doc__ or "", "mnist")
    table = Table("sparse_training")
    data = load_data(chosen.folder, mean=MEAN, std=STD)
    for seed in range(chosen.seeds):
        for density in DENSITIES:
            for method in METHODS:
                table.run(f"{method}/{density:g}/{seed}", lambda m=method, d=density, s=seed: run(m, d, s, data))
    (HERE / "sparse_training.md").write_text(render(table))


def render(table: Table) -> str:
    """The table in Markdown, from the data alone."""
    rows = []
    for method in METHODS:
        found = [[c["error"] for k, c in sorted(table.cells.items()) if k.startswith(f"{method}/{d:g}/")]
                 for d in DENSITIES]  # fmt: skip
        rows.append([method, *map(mean_std, found)])
    return "\n".join(
        [
            "# Sparse from the first step\n",
            f"LeNet-300-100 on the first {NUM_IMAGES:,} training images of MNIST, {NUM_STEPS} steps of SGD: test error "
            "in percentage points, mean ± sample standard deviation over seeds, by the part of the weights that there "
            "are (Erdős–Rényi densities; the random mask of a seed is the same for all). Generated from "
            "`sparse_training.json` by `python bench/experiments/sparse_training.py --data ../shared/data`.\n",
            markdown(["mask", *(f"density {d:g}" for d in DENSITIES)], rows),
            f"RigL and SET exchange weights every {EVERY} steps until step {END}, {FRACTION:g} of them at first.\n",
        ]
    )


if __name__ == "__main__":
    main()
