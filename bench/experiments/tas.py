"""Architecture search on CIFAR-10 (JPEG): ResNet-20 at half its MACs, against uniform widths at equal MACs.

    python bench/experiments/tas.py --data ../shared/data

A dense ResNet-20 is trained on 10,000 images; TAS searches widths and depths, and what it finds is drawn anew and
distilled from the dense net. Uniform widths of the same MACs are trained from scratch as long, with and without the
same distillation. What is to be seen: the budget within 5 %, and the net found no worse than the uniform one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from cells import Table, arguments, error_rate, markdown, mean_std, trained

import topiarist
from topiarist.data import Batches, load_data
from topiarist.models import ResNet
from topiarist.recover import Distil, RecoveryContext, TrainingRecipe, reinitialize, train

NUM_IMAGES, MACS, EPOCHS, SEARCH_EPOCHS, DEPTH = 10_000, 0.5, 15, 10, 20
WAYS = ("dense", "uniform", "uniform, distilled", "searched, distilled")


def recipe(epochs: float) -> TrainingRecipe:
    """The training of every net."""
    return TrainingRecipe(epochs=epochs, lr=0.1, weight_decay=5e-4, nesterov=True, lr_schedule="cosine")


def distillation(epochs: float) -> Distil:
    """The paper's: 0.9 of the loss from logits at temperature 4."""
    return Distil(recipe(epochs), temperature=4.0, logits=0.9, task=0.1)


def dense_net(seed: int, data: Any, epochs: int, folder: str) -> torch.nn.Module:
    """The trained net of one seed; trained once and kept beside the runs."""
    return trained(
        f"{folder}-{seed}",
        lambda: ResNet(DEPTH),
        lambda model: train(model, data.train, F.cross_entropy, recipe(epochs)),
        seed,
    )


def run(way: str, seed: int, data: Any, quick: bool) -> dict[str, Any]:
    """One net, its test error and its MACs."""
    epochs, x = (1 if quick else EPOCHS), data.example_inputs
    dense = dense_net(seed, data, epochs, "tas-quick" if quick else "tas")
    torch.manual_seed(seed)
    options = {"data": data.train, "loss": F.cross_entropy, "budget": topiarist.Budget(macs=MACS)}
    if way == "dense":
        model, found = dense, {"macs": 1.0}
    elif way == "searched, distilled":
        result = topiarist.methods.architecture_search(
            dense, x, epochs=1 if quick else SEARCH_EPOCHS, logits_lr=0.02, distil=distillation(epochs), seed=seed,
            **options,
        )  # fmt: skip
        model, plan = result.model, result.plan
        found = {"macs": plan.achieved["macs"], "num_bypassed": len(plan.bypassed)}
    else:
        plan = topiarist.plan(dense, x, structure="channel", allocation="uniform", budget=options["budget"])
        model, found = topiarist.shrink(dense, plan, x), {"macs": plan.achieved["macs"]}
        reinitialize(model, seed)
        if way == "uniform":
            train(model, data.train, F.cross_entropy, recipe(epochs))
        else:
            distillation(epochs)(model, RecoveryContext(data=data.train, loss=F.cross_entropy, dense=dense))
    error = error_rate(model, data.test)
    return {"error": error, **found, "summary": f"{error:.2f} % at {found['macs']:.3f}"}


def main() -> None:
    """Fill the table, then write it."""
    chosen = arguments(__doc__ or "", "cifar10")
    table = Table("tas", chosen.out)
    for seed in range(chosen.seeds):
        data = load_data(chosen.folder, seed=seed)
        num = 256 if chosen.quick else NUM_IMAGES
        some = Batches(
            data.train.inputs[:num], data.train.targets[:num], 128, shuffle=True, seed=seed, pad=4, flip=True
        )
        tested = Batches(*(t[: 500 if chosen.quick else None] for t in (data.test.inputs, data.test.targets)), 250)
        data = topiarist.data.Data(some, tested, 10, data.example_inputs)
        for way in WAYS:
            table.run(f"{way}/{seed}", lambda w=way, s=seed, d=data: run(w, s, d, chosen.quick))
    (chosen.out / "tas.md").write_text(render(table))


def render(table: Table) -> str:
    """The table in Markdown, from the data alone."""
    rows = []
    for way in WAYS:
        cells = [c for k, c in sorted(table.cells.items()) if k.startswith(f"{way}/")]
        passed = "/".join(str(c["num_bypassed"]) for c in cells if "num_bypassed" in c)
        rows.append([way, mean_std([c["error"] for c in cells]), mean_std([c["macs"] for c in cells], 3), passed])
    return "\n".join(
        [
            "# Architecture search on CIFAR-10 (JPEG)\n",
            f"ResNet-{DEPTH} on {NUM_IMAGES:,} training images, {EPOCHS} epochs for every net, {SEARCH_EPOCHS} of "
            "search before the one that is searched: test error in percentage points and the part of the MACs, mean ± "
            "sample standard deviation over seeds, and how many blocks are passed by in each. Generated from "
            "`tas.json` by `python bench/experiments/tas.py --data ../shared/data`.\n",
            markdown(["net", "error", "MACs", "blocks passed by"], rows),
        ]
    )


if __name__ == "__main__":
    main()
