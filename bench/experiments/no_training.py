"""Recovery without labels and without gradients: half of the inner channels one-shot, each way of recovery.

    python bench/experiments/no_training.py --data ../shared/data

ResNet-20 is the trained one of the data folder, on CIFAR-10 (JPEG), the others are trained here on MNIST.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from cells import HERE, Table, arguments, error_rate, markdown, trained
from safetensors.torch import load_file
from torch import nn

import topiarist
from topiarist.data import load_data
from topiarist.data.loader import Batches
from topiarist.models import MODELS, VisionTransformer
from topiarist.recover import TrainingRecipe, train

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NUM_CALIBRATION = 1024
NUM_TRAINING = 20_000
NUM_TEST = 4000
RECOVERIES = {
    "none": "plain removal",
    "recalibrate": "batch-norm recalibration",
    "compensate": "compensation",
    "reconstruct": "reconstruction",
    "no-training": "no-training",
}
NETS: dict[str, dict[str, Any]] = {
    "ResNet-20": {"keep": ["layer?", "layer?.?", "conv1"], "sparsity": 0.5},
    "LeNet-5": {"keep": [], "sparsity": 0.5},
    "LeNet-300-100": {"keep": [], "sparsity": 0.5},
    "ViT": {"keep": ["blocks.?"], "sparsity": 0.5},
}


def small(name: str, data: Any) -> nn.Module:
    """A net trained on a third of MNIST for two epochs; trained once and kept beside the runs."""
    build = {
        "LeNet-5": MODELS["lenet5"],
        "LeNet-300-100": MODELS["lenet-300-100"],
        "ViT": lambda: VisionTransformer(image_size=28, patch_size=7, in_channels=1, dim=48, depth=3, num_hidden=96),
    }[name]
    some = Batches(data.train.inputs[:NUM_TRAINING], data.train.targets[:NUM_TRAINING], 64, shuffle=True)
    recipe = TrainingRecipe(2, 1e-3, "adam", lr_schedule="cosine")
    return trained(f"no-training-{name}", build, lambda model: train(model, some, F.cross_entropy, recipe))


def tested(data: Any) -> list[Any]:
    """The first batches of the test set, as many as have `NUM_TEST` samples."""
    batches, num = [], 0
    for batch in data.test:
        if num < NUM_TEST:
            batches.append(batch)
        num += len(batch[1])
    return batches


def cut(model: nn.Module, name: str, recover: str, data: Any, calibration: Any) -> dict[str, Any]:
    """Half of the inner channels, one-shot, the accuracy that is left and the time that it took."""
    start = time.process_time()
    result = topiarist.prune(
        model, data.example_inputs, structure="channel", saliency="l2", allocation="uniform", recover=recover,
        budget=topiarist.Budget(sparsity=NETS[name]["sparsity"]), data=calibration, keep=NETS[name]["keep"],
    )  # fmt: skip
    seconds = time.process_time() - start
    accuracy = 100 - error_rate(result.model, tested(data))
    achieved = {k: result.plan.achieved[k] for k in ("macs", "params", "sparsity")}
    return {"accuracy": accuracy, "seconds": round(seconds, 1), **achieved, "summary": f"{accuracy:.2f}"}


def main() -> None:
    """Fill the table, then write it."""
    chosen = arguments(__doc__ or "", "cifar10")
    table = Table("no_training")
    for name in NETS:
        if name == "ResNet-20":
            data, options = load_data(chosen.folder, mean=MEAN, std=STD), {"mean": MEAN, "std": STD}
            model = MODELS["resnet20"]()
            model.load_state_dict(load_file(Path(chosen.data) / "cifar10_resnets" / "resnet20.safetensors"))
        else:
            data, options = load_data(str(Path(chosen.data) / "mnist")), {}
            model = small(name, data)
        inputs, targets = data.train.inputs[:NUM_CALIBRATION], data.train.targets[:NUM_CALIBRATION]
        calibration = Batches(inputs, targets, 128, **options)
        table.run(f"{name}/dense", lambda m=model, d=data: {"accuracy": 100 - error_rate(m, tested(d))})
        has_norm = any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
        for recover in RECOVERIES:
            if recover != "recalibrate" or has_norm:
                table.run(
                    f"{name}/{recover}",
                    lambda m=model, n=name, r=recover, d=data, c=calibration: cut(m, n, r, d, c),
                )
    (HERE / "no_training.md").write_text(render(table))


def render(table: Table) -> str:
    """The table in Markdown, from the data alone."""
    cells, rows = table.cells, []
    for name in NETS:
        for recover, title in RECOVERIES.items():
            cell = cells.get(f"{name}/{recover}")
            if cell is not None:
                rows.append([name, f"{cells[f'{name}/dense']['accuracy']:.2f}", f"{cell['params']:.3f}", title,
                             f"{cell['accuracy']:.2f}", f"{cell['seconds']:.0f}"])  # fmt: skip
    text = (
        "# Recovery without training\n\n"
        "Half of every inner channel group cut one-shot by L2 (residual streams whole), then recovered on "
        f"{NUM_CALIBRATION} unlabelled training images without gradients. ResNet-20 on CIFAR-10 (JPEG) as its authors "
        f"trained it, the others on MNIST. Accuracy is over the first {NUM_TEST} test images (to the end of a batch); "
        "CPU seconds are those of the whole call, tracing and verifying included. Generated from `no_training.json` by "
        "`python bench/experiments/no_training.py --data ../shared/data`.\n\n"
    )
    header = ["net", "dense accuracy", "parameters remaining", "recovery", "accuracy", "CPU seconds"]
    return text + markdown(header, rows)


if __name__ == "__main__":
    main()
