"""The runs that the commands start: each keeps all it makes in one folder, and goes on from what is there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from topiarist import allocation as allocations
from topiarist.allocation.sensitivity import SensitivityTable
from topiarist.cli import recipe as recipes
from topiarist.cli.console import Stage, Stages, resumable
from topiarist.cli.files import write_text
from topiarist.cli.recipe import Recipe
from topiarist.cli.task import Task
from topiarist.data import count_batches
from topiarist.errors import InputError
from topiarist.io import load, save
from topiarist.methods import resolve
from topiarist.planning import sensitivity as analyse
from topiarist.pruning import PruneResult
from topiarist.pruning import prune as prune_model
from topiarist.recover import Checkpoints, WeightRewind
from topiarist.recover import train as train_model
from topiarist.report import RunRecord
from topiarist.report.build import Result, build

RECORD, REPORT, TABLE = "record.json", "report.html", "sensitivity.json"
DENSE, MODEL, PRETRAINED = "dense", "model", "pretrained"
_STEPS, _CHECKPOINTS, _ROWS = "steps", "checkpoints", "training.json"

Rows = list[dict[str, float]]


@dataclass(frozen=True, eq=False)
class Run:
    """One run in its folder: ``recipe.yaml``, ``dense/``, ``model/``, ``sensitivity.json``, ``record.json`` and
    ``report.html``, as far as the command makes them."""

    command: str
    task: Task
    folder: Path
    stages: Stages

    def dense(self, checkpoints: Checkpoints | None = None) -> tuple[nn.Module, Rows]:
        """The trained network and the rows of its training: from the folder, or trained from where that was stopped."""
        task, file = self.task, self.folder / _ROWS
        rows: Rows = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
        if (self.folder / DENSE).is_dir():
            return load(self.folder / DENSE, build=task.build).to(task.recipe.device), rows
        if task.recipe.epochs:
            rows = self._trained(rows, file, checkpoints or Checkpoints(self.folder / _CHECKPOINTS))
        save(task.model, self.folder / DENSE)
        return task.model, rows

    def _trained(self, rows: Rows, file: Path, checkpoints: Checkpoints) -> Rows:
        """Train the task's network from the last checkpoint on; all rows of its training."""
        task = self.task
        rows = rows[: checkpoints.saved[-1]] if checkpoints.saved else []
        stage = self.stages.stage("train")

        def on_step(row: Mapping[str, float]) -> None:
            rows.append({key: row[key] for key in ("step", "loss", "lr")})
            stage.training(row)

        torch.manual_seed(task.recipe.seed)
        try:
            train_model(
                task.model,
                task.data.train,
                task.loss,
                task.training,
                resume=True,
                checkpoints=checkpoints,
                on_step=on_step,
            )
        finally:
            write_text(file, json.dumps(rows))
        return rows

    def table(self, dense: nn.Module) -> SensitivityTable:
        """The sensitivity of ``dense`` on the training data, kept cell by cell."""
        task = self.task
        return analyse(
            dense,
            task.example_inputs,
            evaluate=task.evaluate_on_training,
            grid=task.grid,
            data=task.data.train,
            loss=task.loss,
            path=self.folder / TABLE,
            progress=self.stages.stage("one layer at a time").at,
            **task.choice,
        )

    def record(
        self,
        dense: nn.Module,
        training: Rows,
        results: Sequence[Result] = (),
        table: SensitivityTable | None = None,
    ) -> RunRecord:
        """Measure, and write the record and the report; what was kept for going on is no longer needed."""
        task, recipe = self.task, self.task.recipe
        record = build(
            f"{recipe.model or recipe.arch} on {recipe.data}",
            dense,
            results,
            task.example_inputs,
            evaluate=task.evaluate,
            batch=task.batch,
            training=training,
            table=table,
            command=f"topiarist {self.command} --recipe {self.folder / recipes.FILE}",
            recipe=recipe.model_dump(mode="json", exclude_none=True),
            progress=self.stages.stage("measure").at,
        )
        write_text(self.folder / RECORD, record.to_json())
        write_report(record, self.folder)
        for kept in (_STEPS, _CHECKPOINTS):
            shutil.rmtree(self.folder / kept, ignore_errors=True)
        return record


def train(run: Run) -> RunRecord:
    """Train the network."""
    return run.record(*run.dense())


def sensitivity(run: Run) -> RunRecord:
    """Train the network, then prune one layer at a time and look at the loss."""
    dense, rows = run.dense()
    return run.record(dense, rows, table=run.table(dense))


def prune(run: Run) -> RunRecord:
    """Train the network, prune it and recover."""
    task = run.task
    checkpoints = Checkpoints(run.folder / _CHECKPOINTS, _rewound_to(task))
    dense, rows = run.dense(checkpoints)
    by_table = allocations.needs_table(task.recipe.allocation) and task.recipe.method is None
    table = run.table(dense) if by_table else None
    stage = run.stages.stage("prune")
    result = pruned(task, dense, stage, table=table, checkpoints=checkpoints, folder=run.folder / _STEPS)
    save(result.model, run.folder / MODEL, plan=result.plan)
    if task.recipe.uniform is not None and result.loads_with == "from_pretrained":
        own: Any = result.model.save_pretrained
        own(run.folder / PRETRAINED)
    return run.record(dense, rows, [result], table)


def pruned(
    task: Task,
    dense: nn.Module,
    stage: Stage,
    *,
    table: SensitivityTable | None = None,
    checkpoints: Checkpoints | None = None,
    folder: Path | None = None,
) -> PruneResult:
    """What `topiarist.prune`, or the method that is asked for, makes of ``dense`` with the options of the task."""
    torch.manual_seed(task.recipe.seed)
    with_all: dict[str, Any] = {
        "data": task.data.train,
        "loss": task.loss,
        "evaluate": task.evaluate,
        "recipe": task.training,
        "checkpoints": checkpoints,
        "folder": folder,
        "on_step": stage.pruning,
    }
    if task.recipe.method is not None:
        return resolve(task.recipe.method).told(dense, task.example_inputs, task.method_options, **with_all)
    return prune_model(
        dense,
        task.example_inputs,
        allocation=task.recipe.allocation if table is None else allocations.resolve(task.recipe.allocation, table),
        recover=task.recovery,
        **with_all,
        **task.choice,
        **task.amount,
    )


COMMANDS: dict[str, Callable[[Run], RunRecord]] = {"train": train, "sensitivity": sensitivity, "prune": prune}


def execute(command: str, recipe: Recipe, to: Console) -> tuple[RunRecord, Path]:
    """Run ``command``, or go on with it, in the folder that the recipe names; all that can be checked is checked first.

    Raises:
        InputError: an option cannot be used, or the folder holds a run with other options.
    """
    folder = recipe.folder(command)
    recipe = recipe.model_copy(update={"out": folder})
    file = folder / recipes.FILE
    if file.exists():
        _check_same(recipes.read(file, {}), recipe, folder)
    if (folder / RECORD).exists() and (command != "prune" or (folder / MODEL).exists()):
        to.print(f"{folder} holds this run already, complete", markup=False)
        return read_record(folder), folder
    with Stages(to, recipe.log_interval) as stages:
        task = Task.of(recipe, stages)
        if command != "train":
            task.check()
        folder.mkdir(parents=True, exist_ok=True)
        recipe.write(file)
        with resumable("topiarist", command, "--recipe", str(file)):
            return COMMANDS[command](Run(command, task, folder, stages)), folder


def read_record(folder: Path) -> RunRecord:
    """The record of the run in ``folder``.

    Raises:
        InputError: the folder holds none.
        FormatError: it is damaged.
    """
    path = folder / RECORD
    if not path.is_file():
        raise InputError(f"{folder} holds no {RECORD}; name the folder of a completed run")
    return RunRecord.from_json(path.read_text(encoding="utf-8"))


def write_report(record: RunRecord, folder: Path) -> Path:
    """Write the report of ``record`` to ``folder``."""
    from topiarist.report.page import write  # imports the plotting libraries

    write(record, folder / REPORT)
    return folder / REPORT


def _check_same(held: Recipe, asked: Recipe, folder: Path) -> None:
    there, now = held.identity, asked.identity
    differ = [f"{k}: {there.get(k)} there, {now.get(k)} now" for k in {**there, **now} if there.get(k) != now.get(k)]
    if differ:
        raise InputError(
            f"{folder} holds a run with other options ({', '.join(differ)}); name another folder with --out"
        )


def _rewound_to(task: Task) -> list[int]:
    """The steps of training whose state the recovery goes back to."""
    method = task.recipe.method
    if method is not None and resolve(method).untrained:
        return [0]
    options = {} if method is None else {**resolve(method).options, **task.recipe.method_options}
    recovery = WeightRewind(to_fraction=options["rewind_to"]) if "rewind_to" in options else task.recovery
    if not isinstance(recovery, WeightRewind):
        return []
    return [recovery.step(task.training.num_steps(count_batches(task.data.train)))]
