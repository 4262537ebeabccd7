"""Is it the weights or the architecture? Four ways to choose channels, fine-tuned, and the same networks from scratch.

    python bench/experiments/rethinking.py --data ../shared/data

Half of the multiply–accumulates go from VGG-16-BN with a quarter of the widths and from ResNet-20 (inside its blocks),
on 10,000 images of CIFAR-10 (JPEG), as in Liu et al. 2019: scratch-E trains the smaller network as long as the dense
one was, scratch-B for as much compute.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from cells import Table, arguments, error_rate, first, markdown, mean_std, trained
from torch import nn

import topiarist
from topiarist.data import load_data
from topiarist.models import ResNet, vgg16_bn
from topiarist.recover import FineTune, TrainingRecipe, reinitialize, train
from topiarist.recover.scratch import stretched

NUM_IMAGES, EPOCHS, AFTER = 10_000, 8, 2
MACS = 0.5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NETS: dict[str, dict[str, Any]] = {
    "VGG-16-BN ÷ 4": {"build": lambda: vgg16_bn(width=0.25), "keep": []},
    "ResNet-20": {"build": lambda: ResNet(20), "keep": ["layer?", "layer?.?", "conv1"]},
}
METHODS = ("l1-filters", "thinet", "channel-lasso", "network-slimming")
WAYS = ("fine-tuned", "scratch-E", "scratch-B")


def recipe(epochs: float, share: float = 1.0) -> TrainingRecipe:
    """SGD, a cosine from 0.1, weight decay 1e-4; a tenth of the rate for fine-tuning."""
    return TrainingRecipe(epochs, 0.1 * share, momentum=0.9, weight_decay=1e-4, lr_schedule="cosine")


def dense(net: str, seed: int, data: Any, chosen: Any) -> nn.Module:
    """The trained net of one seed; trained once and kept beside the runs."""
    epochs, name = (1, None) if chosen.quick else (EPOCHS, f"rethinking-{net.replace(' ', '')}-{seed}")
    return trained(
        name, NETS[net]["build"], lambda model: train(model, data.train, F.cross_entropy, recipe(epochs)), seed
    )


def run(net: str, method: str, seed: int, data: Any, chosen: Any) -> dict[str, Any]:
    """The accuracy of one choice of channels: fine-tuned, and its architecture from scratch in both ways."""
    epochs, after = (1, 1) if chosen.quick else (EPOCHS, AFTER)
    model = dense(net, seed, data, chosen)
    torch.manual_seed(seed)
    result = topiarist.methods.METHODS[method].run(
        model, data.example_inputs, keep=NETS[net]["keep"], budget=topiarist.Budget(macs=MACS), data=data.train,
        loss=F.cross_entropy, recipe=recipe(epochs), recover=FineTune(recipe(after, 0.1)),
    )  # fmt: skip
    left = result.plan.achieved["macs"]
    found = {"fine-tuned": 100 - error_rate(result.model, data.test)}
    for way, ratio in (("scratch-E", 1.0), ("scratch-B", 1 / left)):
        small = topiarist.shrink(model, result.plan, data.example_inputs)
        reinitialize(small, seed)
        train(small, data.train, F.cross_entropy, stretched(recipe(epochs), ratio))
        found[way] = 100 - error_rate(small, data.test)
    said = ", ".join(f"{way} {accuracy:.2f}" for way, accuracy in found.items())
    return {**found, "accuracy": found["fine-tuned"], "macs": left, "params": result.plan.achieved["params"],
            "summary": said}  # fmt: skip


def main() -> None:
    """Fill the table, then write it."""
    chosen = arguments(__doc__ or "", "cifar10")
    table = Table("rethinking", chosen.out)
    for seed in range(chosen.seeds):
        data = load_data(chosen.folder, seed=seed, pad=4, flip=True, mean=MEAN, std=STD)
        first(data, *((32, 100) if chosen.quick else (NUM_IMAGES, None)))
        for net in NETS:
            table.run(f"{net}/dense/{seed}", lambda n=net, s=seed, d=data: judged(dense(n, s, d, chosen), d))
            for method in METHODS:
                key = f"{net}/{method}/{seed}"
                table.run(key, lambda n=net, m=method, s=seed, d=data: run(n, m, s, d, chosen))
    (chosen.out / "rethinking.md").write_text(render(table))


def judged(model: nn.Module, data: Any) -> dict[str, Any]:
    """The cell of a net as it is."""
    accuracy = 100 - error_rate(model, data.test)
    return {"accuracy": accuracy, "summary": f"{accuracy:.2f} %"}


def render(table: Table) -> str:
    """The table in Markdown, from the data alone."""
    text = [
        "# The weights or the architecture\n",
        f"CIFAR-10 (JPEG), {NUM_IMAGES:,} training images: test accuracy in percentage points with half of the "
        "multiply–accumulates, mean ± sample standard deviation over seeds. Generated from `rethinking.json` by "
        "`python bench/experiments/rethinking.py --data ../shared/data`.\n",
    ]
    for net in NETS:
        rows = []
        for method in METHODS:
            cells = [c for k, c in sorted(table.cells.items()) if k.startswith(f"{net}/{method}/")]
            shares = (mean_std([c[unit] for c in cells], 3) for unit in ("macs", "params"))
            rows.append([method, *shares, *(mean_std([c[way] for c in cells]) for way in WAYS)])
        before = [c["accuracy"] for k, c in sorted(table.cells.items()) if k.startswith(f"{net}/dense/")]
        header = ["channels by", "MACs", "parameters", *WAYS]
        text += [f"## {net}\n", f"Dense: {mean_std(before)}.\n", markdown(header, rows)]
    return "\n".join(text)


if __name__ == "__main__":
    main()
