"""What the commands show: live bars on a terminal, plain lines elsewhere, tables, and errors in one line."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from topiarist.errors import TopiaristError
from topiarist.report import RunRecord

_LINES = 5  # lines per stage where there is no terminal


def console(*, stderr: bool = False) -> Console:
    """Where the commands write; long lines are left to the terminal, so that paths can be copied."""
    return Console(stderr=stderr, soft_wrap=True, highlight=False)


class Commands(TyperGroup):
    """A group of commands that shows topiarist's own errors, and a Ctrl-C, in one line."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command: exit code 2 for input that cannot be used, 130 after Ctrl-C."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # whoever read the output has seen enough
            raise
        except (TopiaristError, OSError) as error:
            console(stderr=True).print(Text(f"error: {error}", style="bold red"))
            raise typer.Exit(2) from None
        except KeyboardInterrupt as stopped:
            advice = f"; {stopped}" if stopped.args else ""
            console(stderr=True).print(Text(f"stopped{advice}", style="bold red"))
            raise typer.Exit(130) from None


@contextmanager
def resumable(*command: str) -> Iterator[None]:
    """Let a Ctrl-C inside say which command goes on from the last completed step."""
    try:
        yield
    except KeyboardInterrupt as stopped:
        raise KeyboardInterrupt(f"go on from the last completed step with: {shlex.join(command)}") from stopped


class Stages:
    """The progress of a run, stage by stage; use it as a context manager.

    ``log_interval`` asks for a line every so many steps of training, beside the bar.
    """

    def __init__(self, to: Console, log_interval: int = 0) -> None:
        self.console, self.log_interval = to, log_interval
        self._bars = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=to,
            disable=not to.is_terminal,
        )

    def __enter__(self) -> Stages:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def stage(self, name: str, total: int | None = None) -> Stage:
        """Begin a stage of ``total`` steps, or of a number that its first `Stage.at` tells."""
        return Stage(self, name, self._bars.add_task(name, total=total, note=""))

    def _show(self, task: TaskID, done: int, total: int | None, note: str) -> None:
        self._bars.update(task, completed=done, total=total, note=note)

    def line(self, text: str) -> None:
        """Print a line above the bars."""
        self._bars.console.print(text, markup=False)


class Stage:
    """One stage: `at` moves its bar, and prints a line now and then where there is none."""

    def __init__(self, stages: Stages, name: str, task: TaskID) -> None:
        self._stages, self._name, self._task = stages, name, task
        self._shown = 0  # how many lines of this stage are printed
        self._per_step = 1  # training steps in a pruning step

    def at(self, done: int, total: int, note: str = "") -> None:
        """``done`` of ``total`` steps are completed; callable as the progress of any function that counts."""
        self._stages._show(self._task, done, total, note)
        every = self._stages.log_interval
        if every:
            due = done % every == 0
        else:
            due = not self._stages.console.is_terminal and done * _LINES // total > self._shown
        if due or (done == total and not self._stages.console.is_terminal):
            self._shown = done * _LINES // total
            self._stages.line(f"{self._name}: {done} of {total}" + (f", {note}" if note else ""))

    def training(self, row: Mapping[str, float]) -> None:
        """A row of `topiarist.recover.train`, within a pruning step where it belongs to one."""
        note = f"loss {row['loss']:.4f}, lr {row['lr']:.4g}" if "loss" in row else ""
        done, total = int(row["step"]) + 1, int(row["num_steps"])
        if "pruning_step" in row:
            step, num_steps = int(row["pruning_step"]), int(row["num_pruning_steps"])
            done, total, self._per_step = (step - 1) * total + done, num_steps * total, total
        self.at(done, total, note)

    def pruning(self, row: Mapping[str, float]) -> None:
        """A row of `topiarist.prune`: of training, or of a completed pruning step, which is printed."""
        if "timing" in row:
            self.at(int(row["timing"]), int(row["num_timings"]), "timing layers")
            return
        if "pruning_step" in row:
            self.training(row)
            return
        step, num_steps = int(row["step"]), int(row["num_steps"])
        said = ", ".join(
            f"{key} {row[key]:.4f}" for key in ("sparsity", "macs", "latency_ms", "loss", "accuracy") if key in row
        )
        self._stages._show(self._task, step * self._per_step, num_steps * self._per_step, "")
        self._stages.line(f"{self._name}, step {step} of {num_steps}: {said}")


def closing_table(record: RunRecord) -> Table:
    """The networks of a run side by side: accuracy, sizes, latency and speed-ups."""
    from topiarist.report.page import COLUMNS  # imports the plotting libraries

    table = Table(title=record.title, title_style="bold", title_justify="left")
    table.add_column("")
    for variant in record.variants:
        table.add_column(variant.name, justify="right")
    for column in COLUMNS:
        table.add_row(column.title, *(column.write(getattr(variant, column.field)) for variant in record.variants))
    return table
