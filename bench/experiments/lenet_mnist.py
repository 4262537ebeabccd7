"""LeNet-300-100 and LeNet-5 on MNIST at compression 12 (Han et al. 2015: 1.64 → 1.59 and 0.80 → 0.77 % error).

    python bench/experiments/lenet_mnist.py --data ../shared/data

Every method starts from the same trained net of its seed, gets the same number of epochs after (in all), the same
optimizer and learning rates, and is judged by the test error after the last epoch: no selection on the test set.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from cells import HERE, Table, arguments, error_rate, markdown, mean_std, trained

import topiarist
from topiarist.data import load_data
from topiarist.models import MODELS
from topiarist.recover import FineTune, TrainingRecipe, train
from topiarist.report.plots import TradeoffPoint, save_svg, tradeoff_chart

COMPRESSION = 12.0
METHODS: dict[str, dict[str, Any]] = {
    "iterative global magnitude": {"saliency": "l1", "allocation": "global", "iterative": True},
    "one-shot global magnitude": {"saliency": "l1", "allocation": "global", "iterative": False},
    "iterative layerwise magnitude": {"saliency": "l1", "allocation": "uniform", "iterative": True},
    "iterative global gradient": {"saliency": "gradient", "allocation": "global", "iterative": True},
    "iterative random": {"saliency": "random", "allocation": "global", "iterative": True},
}
NETS: dict[str, dict[str, Any]] = {
    "lenet-300-100": {"lr": 0.1, "epochs": 15, "rounds": 6, "epochs_a_round": 4, "compressions": (12.0, 32.0)},
    "lenet5": {"lr": 0.02, "epochs": 8, "rounds": 6, "epochs_a_round": 1, "compressions": (12.0,)},
}
PAPER = {"lenet-300-100": "1.64 → 1.59", "lenet5": "0.80 → 0.77"}


def recipe(net: str, epochs: float, share: float = 1.0) -> TrainingRecipe:
    """SGD with momentum, L2 regularisation and a cosine; half the learning rate after pruning.

    Learning rate and epochs were chosen on the last 10,000 training images, not on the test set.
    """
    lr = share * NETS[net]["lr"]
    return TrainingRecipe(epochs=epochs, lr=lr, momentum=0.9, weight_decay=5e-4, lr_schedule="cosine")


def after(net: str) -> int:
    """Epochs after pruning begins, the same for every method."""
    return int(NETS[net]["rounds"] * NETS[net]["epochs_a_round"])


def dense_net(net: str, seed: int, data: Any) -> torch.nn.Module:
    """The trained net of one seed; trained once and kept beside the runs."""
    epochs = NETS[net]["epochs"]
    return trained(
        f"{net}-{seed}", MODELS[net], lambda model: train(model, data.train, F.cross_entropy, recipe(net, epochs)), seed
    )


def run(net: str, method: str, compression: float, seed: int, data: Any) -> dict[str, Any]:
    """Prune the net of one seed by one method and return its errors along the way."""
    settings = METHODS[method]
    rounds = NETS[net]["rounds"] if settings["iterative"] else 1
    result = topiarist.prune(
        dense_net(net, seed, data),
        data.example_inputs,
        saliency=settings["saliency"] if settings["saliency"] != "random" else topiarist.saliency.Random(seed=seed),
        allocation=settings["allocation"],
        budget=topiarist.Budget(compression=compression),
        schedule="exponential",
        steps=rounds,
        recover=FineTune(recipe(net, after(net) / rounds, share=0.5)),
        data=data.train,
        loss=F.cross_entropy,
        evaluate=lambda model: {"error": error_rate(model, data.test)},
    )
    curve = [{"compression": row["compression"], "error": row["error"]} for row in result.curve]
    return {"curve": curve, "error": curve[-1]["error"], "compression": curve[-1]["compression"],
            "summary": f"{curve[-1]['error']:.2f} % at {curve[-1]['compression']:.2f}×"}  # fmt: skip


def main() -> None:
    """Fill the table, then write it and its plot."""
    chosen = arguments(__doc__ or "", "mnist")
    table = Table("lenet_mnist")
    for net in NETS:
        for seed in range(chosen.seeds):
            data = load_data(chosen.folder, seed=seed)
            table.run(f"{net}/dense/{seed}", lambda n=net, s=seed, d=data: judged(dense_net(n, s, d), d))
            for compression in NETS[net]["compressions"]:
                for method in METHODS:
                    table.run(
                        f"{net}/{method}/{compression:g}/{seed}",
                        lambda n=net, m=method, c=compression, s=seed, d=data: run(n, m, c, s, d),
                    )
            table.run(f"{net}/dense, trained on/{seed}", lambda n=net, s=seed, d=data: trained_on(n, s, d))
    (HERE / "lenet_mnist.md").write_text(render(table))
    plot(table)


def trained_on(net: str, seed: int, data: Any) -> dict[str, Any]:
    """The control: the dense net with the same epochs after, and nothing removed."""
    model = dense_net(net, seed, data)
    train(model, data.train, F.cross_entropy, recipe(net, after(net), share=0.5))
    return judged(model, data)


def judged(model: torch.nn.Module, data: Any) -> dict[str, Any]:
    """The cell of a net as it is."""
    error = error_rate(model, data.test)
    return {"error": error, "summary": f"{error:.2f} %"}


def render(table: Table) -> str:
    """The table in Markdown, from the data alone."""
    text = [
        "# LeNet-300-100 and LeNet-5 on MNIST\n",
        "Test error in percentage points, mean ± sample standard deviation over seeds. All methods of a net start from "
        "the same trained nets and train for the same number of epochs after. Generated from `lenet_mnist.json` by "
        "`python bench/experiments/lenet_mnist.py --data ../shared/data`.\n",
    ]
    for net, settings in NETS.items():
        header = ["method", *(f"{c:g}×" for c in settings["compressions"]), "above dense at 12×"]
        num = len(settings["compressions"])
        dense = errors(table, f"{net}/dense/")
        control = errors(table, f"{net}/dense, trained on/")
        rows = [["dense", *([mean_std(dense)] * num), ""]]
        rows.append(["dense, trained on", *([mean_std(control)] * num), gap(control, dense)])
        for method in METHODS:
            found = [errors(table, f"{net}/{method}/{c:g}/") for c in settings["compressions"]]
            rows.append([method, *map(mean_std, found), gap(errors(table, f"{net}/{method}/12/"), dense)])
        text += [f"## {net}\n", f"Han et al. 2015: {PAPER[net]} at 12×.\n", markdown(header, rows)]
    return "\n".join([*text, "![error, LeNet-300-100](lenet_mnist.svg)\n", "Random pruning lies above the plot.\n"])


def plot(table: Table) -> None:
    """Error against compression for LeNet-300-100: one-shot at each compression, every round of the others on the way
    to the largest."""
    net = "lenet-300-100"
    dense = errors(table, f"{net}/dense/")
    largest = max(NETS[net]["compressions"])
    points = []
    for key, cell in sorted(table.cells.items()):
        method, _, rest = key.removeprefix(f"{net}/").partition("/")
        if not key.startswith(f"{net}/") or method not in METHODS or method == "iterative random":
            continue
        compression, _, seed = rest.partition("/")
        if METHODS[method]["iterative"] and float(compression) != largest:
            continue
        points += [TradeoffPoint(method, round(p["compression"], 2), p["error"], int(seed)) for p in cell["curve"]]
    save_svg(tradeoff_chart(points, y="test error, points", dense=sum(dense) / len(dense)), HERE / "lenet_mnist.svg")


def errors(table: Table, prefix: str) -> list[float]:
    """The errors of one row, over seeds."""
    return [cell["error"] for key, cell in sorted(table.cells.items()) if key.startswith(prefix)]


def gap(found: list[float], dense: list[float]) -> str:
    """How far above dense, on average, in percentage points."""
    return f"{sum(found) / len(found) - sum(dense[: len(found)]) / len(found):+.2f}"


if __name__ == "__main__":
    main()
