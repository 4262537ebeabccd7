"""Self-adaptive pruning on Fashion-MNIST: the mean cost, what easy and hard images cost, and the time at batch 1.

    python bench/experiments/sanp.py --data ../shared/data

A small convolutional net is trained, then made self-adaptive at several budgets. What is to be seen: the mean cost on
the test images within 5 % of the budget; images of which the dense net is sure cost less than those of which it is not;
and the time of single images falls with their cost. Dense and adaptive nets take turns, one call of one image each on
one thread; time is the median over images of CPU seconds over those of the dense net's call beside it.
"""

from __future__ import annotations

import copy
import statistics
import time
from typing import Any

import torch
import torch.nn.functional as F
from cells import Table, arguments, error_rate, markdown, mean_std
from torch import Tensor, nn

import topiarist
from topiarist.data import Batches, load_data
from topiarist.mask import SelfAdaptive
from topiarist.methods.self_adaptive import mean_cost, variance
from topiarist.recover import TrainingRecipe, train

QUANTITIES = (
    ("error", 2), ("cost", 3), ("easy", 3), ("hard", 3), ("between", 4), ("time", 2), ("remembered", 2)
)  # fmt: skip
NUM_IMAGES, BATCH, EPOCHS, BUDGETS, NUM_TIMED = 8_000, 32, 6, (0.75, 0.5, 0.35), 300
WIDTHS = (32, 96, 96)


def net() -> nn.Module:
    """Three convolutions, the last two of stride 2, and a linear layer; about 10 million multiply–accumulates."""
    layers: list[nn.Module] = []
    for num_in, num_out, stride in zip((1, *WIDTHS), WIDTHS, (1, 2, 2), strict=False):
        layers += [nn.Conv2d(num_in, num_out, 3, stride, 1, bias=False), nn.BatchNorm2d(num_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(WIDTHS[-1] * 49, 10))


def dense_net(seed: int, train_data: Batches, epochs: float) -> nn.Module:
    """The trained net of one seed."""
    torch.manual_seed(seed)
    dense = net()
    recipe = TrainingRecipe(epochs=epochs, lr=0.02, momentum=0.9, lr_schedule="cosine")
    train(dense, train_data, F.cross_entropy, recipe)
    return dense


def run(budget: float, dense: nn.Module, train_data: Batches, test: Batches, epochs: float) -> dict[str, Any]:
    """The adaptive net of a budget; 1 is the dense one."""
    if budget == 1:
        error = error_rate(dense, test)
        return {"error": error, "cost": 1.0, "summary": f"{error:.2f} %"}
    result = topiarist.methods.self_adaptive(
        dense, train_data.examples(), data=train_data, loss=F.cross_entropy, budget=topiarist.Budget(macs=budget),
        epochs=epochs, lr=3e-4, decision_lr=3e-3, strength=5.0,
    )  # fmt: skip
    model = result.model.eval()
    assert isinstance(model, SelfAdaptive)  # noqa: S101 for the type checker
    easy, hard, between = by_difficulty(dense.eval(), model, test)
    error = error_rate(model, test)
    found = {"cost": mean_cost(model, test), "easy": easy, "hard": hard, "between": between}
    fresh, remembered = times(dense, model, test)
    said = f"{error:.2f} % at {found['cost']:.3f}, easy {easy:.3f}, hard {hard:.3f}, time {fresh:.2f}, {remembered:.2f}"
    return {"error": error, "time": fresh, "remembered": remembered, **found, "summary": said}


@torch.no_grad()
def by_difficulty(dense: nn.Module, model: SelfAdaptive, test: Batches) -> tuple[float, float, float]:
    """The mean cost of the tenth of images that the dense net is surest of, of the tenth that it is least sure of, and
    the variance of decisions between images."""
    sure, costs, between = [], [], []
    for x, _ in test:
        sure.append(dense(x).softmax(1).amax(1))
        model(x)
        costs.append(model.cost())
        between.append(variance(model))
    order, cost = torch.cat(sure).argsort(), torch.cat(costs)
    num = max(1, len(order) // 10)
    return float(cost[order[-num:]].mean()), float(cost[order[:num]].mean()), statistics.mean(between)


@torch.no_grad()
def times(dense: nn.Module, model: SelfAdaptive, test: Batches) -> tuple[float, float]:
    """The time of one image over the dense net's, with weights taken out anew and with weights remembered."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    again = copy.deepcopy(model)
    ratios: tuple[list[float], list[float]] = ([], [])
    with again.remembering():
        for x in next(iter(test))[0][:NUM_TIMED].split(1):
            base, *others = (seconds(net, x) for net in (dense, model, again))
            for taken, other in zip(ratios, others, strict=True):
                taken.append(other / base)
    torch.set_num_threads(threads)
    return statistics.median(ratios[0]), statistics.median(ratios[1])


def seconds(model: nn.Module, x: Tensor) -> float:
    """CPU seconds of one call."""
    start = time.thread_time()
    model(x)
    return time.thread_time() - start


def main() -> None:
    """Fill the table, then write it."""
    chosen = arguments(__doc__ or "", "fashion_mnist")
    table = Table("sanp", chosen.out)
    num, epochs = (128, 1) if chosen.quick else (NUM_IMAGES, EPOCHS)
    for seed in range(chosen.seeds):
        data = load_data(chosen.folder, seed=seed)
        some = Batches(data.train.inputs[:num], data.train.targets[:num], BATCH, shuffle=True, seed=seed)
        test = Batches(*(t[: 100 if chosen.quick else None] for t in (data.test.inputs, data.test.targets)), 500)
        if all(f"{budget:g}/{seed}" in table.cells for budget in (1, *BUDGETS)):
            continue
        dense = dense_net(seed, some, epochs)
        for budget in (1, *BUDGETS):
            key = f"{budget:g}/{seed}"
            table.run(key, lambda b=budget, n=dense, d=some, t=test: run(b, n, d, t, epochs))
    (chosen.out / "sanp.md").write_text(render(table))


def render(table: Table) -> str:
    """The table in Markdown, from the data alone."""
    rows = []
    for budget in (1, *BUDGETS):
        cells = [c for k, c in sorted(table.cells.items()) if k.startswith(f"{budget:g}/")]
        parts = [mean_std([c[q] for c in cells if q in c], d) if q in cells[0] else "" for q, d in QUANTITIES]
        rows.append(["dense" if budget == 1 else f"{budget:g}", *parts])
    header = [
        "budget",
        "error",
        "cost",
        "of the easiest tenth",
        "of the hardest",
        "variance between images",
        "time",
        "remembered",
    ]
    return "\n".join(
        [
            "# Self-adaptive pruning on Fashion-MNIST\n",
            f"Convolutions of {', '.join(map(str, WIDTHS))} channels, {NUM_IMAGES:,} training images, {EPOCHS} epochs "
            "before and after: test error in percentage points; the mean cost on the test images, in MACs of the dense "
            "net, its decisions included; the time of one image on one thread over the dense net's (the median), "
            "weights taken out for every image or remembered for its decisions. Mean ± sample standard deviation over "
            "seeds. "
            "Generated from `sanp.json` by "
            "`python bench/experiments/sanp.py --data ../shared/data`.\n",
            markdown(header, rows),
        ]
    )


if __name__ == "__main__":
    main()
