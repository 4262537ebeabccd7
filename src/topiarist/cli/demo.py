"""The main job on an embedded default: handwritten digits, a small residual net, pruned in two ways."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from topiarist.cli.console import Stages
from topiarist.cli.files import write_text
from topiarist.cli.recipe import make
from topiarist.cli.run import RECORD, pruned, write_report
from topiarist.cli.task import Task
from topiarist.errors import FormatError
from topiarist.inputs import call
from topiarist.io import load, save
from topiarist.planning import sensitivity
from topiarist.recover import train
from topiarist.report import RunRecord
from topiarist.report.build import build

# One thread: the network is so small that more of them spend their time waiting for each other.
_SHARED = {"arch": "my", "data": "digits", "epochs": 15, "lr": 0.1, "threads": 1}
_WEIGHTS = make({**_SHARED, "sparsity": 0.9, "schedule": "cubic", "steps": 4, "recover_epochs": 3})
_CHANNELS = make(
    {**_SHARED, "structure": "channel", "macs": 0.5, "schedule": "linear", "steps": 3, "recover_epochs": 4}
)
_GRID = (0.5, 0.7, 0.8, 0.9, 0.95)


def run(folder: Path, to: Console) -> tuple[RunRecord, Path, list[str]]:
    """Train, prune weights, prune channels, shrink, verify, save, reload, measure and report.

    Returns:
        The record, the path of the report, and what was found on the way, in sentences.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with Stages(to) as stages:
        task = Task.of(_WEIGHTS, stages)
        dense, stage = task.model, stages.stage("train")
        torch.manual_seed(_WEIGHTS.seed)
        rows = train(dense, task.data.train, task.loss, task.training, on_step=stage.training)
        table = sensitivity(
            dense,
            task.example_inputs,
            evaluate=task.evaluate_on_training,
            grid=_GRID,
            progress=stages.stage("one layer at a time").at,
        )
        masked = pruned(task, dense, stages.stage("prune weights"))
        shrunk = pruned(replace(task, recipe=_CHANNELS), dense, stages.stage("prune channels"))
        kept = {"dense": (dense, None), "masked": (masked.model, masked.plan), "shrunk": (shrunk.model, shrunk.plan)}
        stage = stages.stage("save, reload")
        reloaded: dict[str, nn.Module] = {}
        for number, (name, (model, plan)) in enumerate(kept.items(), start=1):
            save(model, folder / name, plan=plan)
            reloaded[name] = load(folder / name, build=task.build)
            _check_same(model, reloaded[name], task.batch)
            stage.at(number, len(kept))
        record = build(
            "A small residual net on handwritten digits, pruned in two ways",
            reloaded["dense"],
            [replace(masked, model=reloaded["masked"]), replace(shrunk, model=reloaded["shrunk"])],
            task.example_inputs,
            evaluate=task.evaluate,
            batch=task.batch,
            training=rows,
            table=table,
            command="topiarist demo",
            recipe=_recipes(),
            progress=stages.stage("measure").at,
        )
        stage = stages.stage("report")
        write_text(folder / RECORD, record.to_json())
        path = write_report(record, folder)
        for name, recipe in (("weights", _WEIGHTS), ("channels", _CHANNELS)):
            recipe.write(folder / f"{name}.yaml")
        stage.at(1, 1)
    notes = [
        f"verified: {shrunk.verification}",
        "reloaded: the networks from disk give the very outputs of those that were saved",
        *record.verdict.split("\n"),
        f"to vary it: topiarist prune --recipe {folder / 'channels.yaml'} --macs 0.3",
    ]
    return record, path, notes


def _recipes() -> Mapping[str, Any]:
    return {
        name: recipe.model_dump(mode="json", exclude_none=True)
        for name, recipe in (("weights", _WEIGHTS), ("channels", _CHANNELS))
    }


def _check_same(saved: nn.Module, reloaded: nn.Module, inputs: Any) -> None:
    with torch.no_grad():
        same = torch.equal(call(saved.eval(), inputs), call(reloaded.eval(), inputs))
    if not same:
        raise FormatError("a network came back from disk with other outputs; please report this, with the folder")
