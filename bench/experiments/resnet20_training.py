"""ResNet-20 on CIFAR-10 (JPEG): 2.1× fewer MACs and sparse weights with ten epochs of recovery, beside other tools.

    python bench/experiments/resnet20_training.py --data ../shared/data

The net is the trained one of the data folder, fine-tuned on the JPEG images to its plateau. Every row starts from it
and gets the same images, epochs, optimizer, learning rates and seed. Torch-Pruning 1.6.1 (`make zoo` installs it) ranks
channel groups by L2 over all layers together and prunes to the same MACs; torch's own pruning takes the global L1.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from cells import HERE, Table, arguments, error_rate, markdown, mean_std, trained
from resnet20_channels import MEAN, STD, original
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import topiarist
from topiarist.data import load_data
from topiarist.data.loader import Batches
from topiarist.recover import Distil, FineTune, RecoveryContext, TrainingRecipe, train

PLATEAU, EPOCHS = 12, 10
MACS = 0.47
SPARSITIES = (0.95, 0.98)
NUM_CALIBRATION = 2048
CHANNELS = ("topiarist, fine-tuned", "topiarist, distilled", "Torch-Pruning, group L2")
WEIGHTS = ("topiarist", "torch.nn.utils.prune")


def recipe(epochs: float) -> TrainingRecipe:
    """SGD with momentum and a cosine, for everybody."""
    return TrainingRecipe(epochs=epochs, lr=0.02, momentum=0.9, nesterov=True, weight_decay=5e-4, lr_schedule="cosine")


def dense_net(chosen: Any, data: Any) -> nn.Module:
    """The net fine-tuned to its plateau; trained once and kept beside the runs."""
    return trained(
        "resnet20-plateau",
        lambda: original(chosen).to(memory_format=torch.channels_last),
        lambda model: train(model, data.train, F.cross_entropy, recipe(PLATEAU)),
    )


def channels(way: str, dense: nn.Module, data: Any) -> dict[str, Any]:
    """Channels to the MACs, then ten epochs."""
    x = data.example_inputs
    small = by_torch_pruning(dense, x) if way.startswith("Torch") else by_topiarist(dense, x, data)
    small = small.to(memory_format=torch.channels_last)
    before = 100 - error_rate(small, data.test)
    recover = Distil(recipe(EPOCHS), task=1.0) if way.endswith("distilled") else FineTune(recipe(EPOCHS))
    recover(small, RecoveryContext(data=data.train, loss=F.cross_entropy, dense=copy.deepcopy(dense)))
    macs = topiarist.measure(small, x, latency=False).macs / topiarist.measure(dense, x, latency=False).macs
    accuracy = 100 - error_rate(small, data.test)
    return {"accuracy": accuracy, "before": before, "macs": macs, "summary": f"{before:.2f} → {accuracy:.2f}"}


def by_topiarist(dense: nn.Module, x: Tensor, data: Any) -> nn.Module:
    """Taylor over all channels together, repaired without training."""
    inputs, targets = data.train.inputs[:NUM_CALIBRATION], data.train.targets[:NUM_CALIBRATION]
    calibration = Batches(inputs, targets, 128, mean=MEAN, std=STD)
    return topiarist.prune(
        dense, x, structure="channel", saliency="taylor", allocation="global", budget=topiarist.Budget(macs=MACS),
        recover="no-training", data=calibration, loss=F.cross_entropy,
    ).model  # fmt: skip


def by_torch_pruning(dense: nn.Module, x: Tensor) -> nn.Module:
    """Group L2 with its default reduction and normalisation, step by step until the MACs are met; option A is given
    as a projection's zeros would be: its shortcuts are left whole."""
    import torch_pruning as tp

    small = copy.deepcopy(dense).eval()
    shortcuts = [m for m in small.modules() if type(m).__name__ == "PaddedShortcut"]
    whole = [
        small.linear,
        small.conv1,
        *(block.conv2 for stage in (small.layer1, small.layer2, small.layer3) for block in stage),
    ]
    importance = tp.importance.GroupMagnitudeImportance(p=2)
    pruner = tp.pruner.MetaPruner(
        small, x, importance, global_pruning=True, pruning_ratio=0.95, iterative_steps=400,
        ignored_layers=[*whole, *shortcuts],
    )  # fmt: skip
    start = tp.utils.count_ops_and_params(dense, x)[0]
    while tp.utils.count_ops_and_params(small, x)[0] > MACS * start:
        pruner.step()
    return small


def weights(way: str, sparsity: float, dense: nn.Module, data: Any) -> dict[str, Any]:
    """Weights of convolutions and of the classifier to a sparsity at once, then ten epochs."""
    model = copy.deepcopy(dense)
    if way == "topiarist":
        model = topiarist.prune(
            model, data.example_inputs, saliency="l1", allocation="global", budget=topiarist.Budget(sparsity=sparsity),
            schedule="cubic", steps=EPOCHS // 2, recover=FineTune(recipe(2)), data=data.train, loss=F.cross_entropy,
        ).model  # fmt: skip
    else:
        layers = [(m, "weight") for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        torch_prune.global_unstructured(layers, torch_prune.L1Unstructured, amount=sparsity)
        train(model, data.train, F.cross_entropy, recipe(EPOCHS))
    accuracy = 100 - error_rate(model, data.test)
    return {"accuracy": accuracy, "summary": f"{accuracy:.2f}"}


def main() -> None:
    """Fill the table, then write it."""
    chosen = arguments(__doc__ or "", "cifar10")
    table = Table("resnet20_training")
    for seed in range(chosen.seeds):
        data = load_data(chosen.folder, pad=4, flip=True, mean=MEAN, std=STD, seed=seed)
        dense = dense_net(chosen, data)
        table.run("dense", lambda m=dense, d=data: {"accuracy": 100 - error_rate(m, d.test)})
        for way in CHANNELS:
            table.run(f"channels/{way}/{seed}", lambda w=way, m=dense, d=data: channels(w, m, d))
    data = load_data(chosen.folder, pad=4, flip=True, mean=MEAN, std=STD)
    for sparsity in SPARSITIES:
        for way in WEIGHTS:
            table.run(
                f"weights/{way}/{sparsity}", lambda w=way, s=sparsity: weights(w, s, dense_net(chosen, data), data)
            )
    (HERE / "resnet20_training.md").write_text(render(table))


def render(table: Table) -> str:
    """The table in Markdown, from the data alone."""
    cells = table.cells
    rows = []
    for way in CHANNELS:
        found = [cell for key, cell in cells.items() if key.startswith(f"channels/{way}/")]
        rows.append(
            [way, *(mean_std([c[k] for c in found], n) for k, n in (("macs", 3), ("before", 2), ("accuracy", 2)))]
        )
    sparse = [[way, *(f"{cells[f'weights/{way}/{s}']['accuracy']:.2f}" for s in SPARSITIES)] for way in WEIGHTS]
    return "\n".join(
        [
            "# ResNet-20 on CIFAR-10 (JPEG), with training\n",
            f"Dense: {cells['dense']['accuracy']:.2f} after {PLATEAU} epochs on the JPEG images. Accuracy in percent "
            f"after {EPOCHS} epochs of recovery, mean ± sample standard deviation over seeds. Generated from "
            "`resnet20_training.json` by `python bench/experiments/resnet20_training.py --data ../shared/data`.\n",
            f"## Channels, {MACS} of the MACs\n",
            markdown(["way", "MACs remaining", "accuracy before", "accuracy"], rows),
            "## Weights\n",
            markdown(["way", *(f"sparsity {s}" for s in SPARSITIES)], sparse),
        ]
    )


if __name__ == "__main__":
    main()
