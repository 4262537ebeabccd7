"""ResNet-20 on CIFAR-10 (JPEG): channels to half the MACs by one-shot L2, no training, with and without recalibration.

    python bench/experiments/resnet20_channels.py --data ../shared/data

The net is the trained one of the data folder (91.78 on lossless CIFAR-10), fine-tuned here on the JPEG images first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.nn.functional as F
from cells import HERE, Table, arguments, error_rate, markdown, trained
from safetensors.torch import load_file
from torch import nn

import topiarist
from topiarist.data import load_data
from topiarist.data.loader import Batches
from topiarist.models import MODELS
from topiarist.recover import Recalibrate, TrainingRecipe, train

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EPOCHS = 3
NUM_CALIBRATION = 1024
CUTS = {"global": "global", "uniform": "uniform"}


def tuned(chosen: Any, data: Any) -> nn.Module:
    """The net fine-tuned on the JPEG images; tuned once and kept beside the runs."""
    recipe = TrainingRecipe(epochs=EPOCHS, lr=0.01, momentum=0.9, weight_decay=1e-4, lr_schedule="cosine")
    return trained(
        "resnet20-jpeg", lambda: original(chosen), lambda model: train(model, data.train, F.cross_entropy, recipe)
    )


def original(chosen: Any) -> nn.Module:
    """The net as its authors trained it."""
    model = MODELS["resnet20"]()
    model.load_state_dict(load_file(Path(chosen.data) / "cifar10_resnets" / "resnet20.safetensors"))
    return model


def cut(model: nn.Module, allocation: str, recover: Any, data: Any) -> dict[str, Any]:
    """Half of the MACs, one-shot, and the accuracy that is left."""
    inputs, targets = data.train.inputs[:NUM_CALIBRATION], data.train.targets[:NUM_CALIBRATION]
    calibration = Batches(inputs, targets, 128, mean=MEAN, std=STD)
    result = topiarist.prune(
        model, data.example_inputs, structure="channel", saliency="l2", allocation=allocation,
        budget=topiarist.Budget(macs=0.5), recover=recover, data=calibration,
    )  # fmt: skip
    accuracy = 100 - error_rate(result.model, data.test)
    shown = {k: result.plan.achieved[k] for k in ("macs", "params", "sparsity")}
    return {"accuracy": accuracy, **shown, "verified": str(result.verification), "summary": f"{accuracy:.2f}"}


def main() -> None:
    """Fill the table, then write it."""
    chosen = arguments(__doc__ or "", "cifar10")
    table = Table("resnet20_channels")
    data = load_data(chosen.folder, pad=4, flip=True, mean=MEAN, std=STD)
    table.run("as given", lambda: {"accuracy": 100 - error_rate(original(chosen), data.test)})
    model = tuned(chosen, data)
    table.run("fine-tuned", lambda: {"accuracy": 100 - error_rate(model, data.test)})
    for name, allocation in CUTS.items():
        table.run(f"{name}/none", lambda a=allocation: cut(model, a, "none", data))
        table.run(f"{name}/recalibrated", lambda a=allocation: cut(model, a, Recalibrate(), data))
    (HERE / "resnet20_channels.md").write_text(render(table))


def render(table: Table) -> str:
    """The table in Markdown, from the data alone."""
    cells = table.cells
    rows = [
        [name, f"{cells[f'{name}/none']['macs']:.3f}", f"{cells[f'{name}/none']['params']:.3f}",
         f"{cells[f'{name}/none']['accuracy']:.2f}", f"{cells[f'{name}/recalibrated']['accuracy']:.2f}"]
        for name in CUTS
    ]  # fmt: skip
    text = (
        "# ResNet-20 on CIFAR-10 (JPEG): channels to half the MACs, no training\n\n"
        f"Dense accuracy: {cells['as given']['accuracy']:.2f} as given, {cells['fine-tuned']['accuracy']:.2f} after "
        f"{EPOCHS} epochs on the JPEG images. One-shot L2 over all free axes, the residual streams among them; "
        f"batch-norm recalibration on {NUM_CALIBRATION} training images. Generated from `resnet20_channels.json` by "
        "`python bench/experiments/resnet20_channels.py --data ../shared/data`.\n\n"
    )
    header = [
        "allocation",
        "MACs remaining",
        "parameters remaining",
        "accuracy, plain removal",
        "accuracy, recalibrated",
    ]
    return text + markdown(header, rows)


if __name__ == "__main__":
    main()
