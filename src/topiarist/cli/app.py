"""The commands: a table of existing functions, and what each prints."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.table import Table
from rich.text import Text

from topiarist.cli.console import Commands, Stages, closing_table, console
from topiarist.cli.options import LOOK, PRUNE, SENSITIVITY, TRAIN, takes
from topiarist.cli.recipe import Recipe

app = typer.Typer(
    cls=Commands,
    help="Prune PyTorch networks: smaller and faster, still right, and proved to be so.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _version(show: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False) -> None:
    if show:
        console().print(version("topiarist"))
        raise typer.Exit


def _run(command: str, recipe: Recipe) -> Path:
    from topiarist.cli.run import REPORT, execute

    to = console()
    record, folder = execute(command, recipe, to)
    to.print(closing_table(record))
    if record.verdict:
        to.print(record.verdict, markup=False)
    to.print(f"report: {folder / REPORT}", markup=False)
    return folder


@app.command()
@takes(TRAIN)
def train(recipe: Recipe) -> None:
    """Train a network; prune and the other commands take it with --weights FOLDER/dense."""
    _run("train", recipe)


@app.command()
@takes(PRUNE)
def prune(recipe: Recipe) -> None:
    """Train a network (or take --weights), prune it, recover, shrink, verify, save and report.

    The same command goes on where an earlier one was stopped.
    """
    _run("prune", recipe)


@app.command()
@takes(SENSITIVITY)
def sensitivity(recipe: Recipe) -> None:
    """Prune one layer at a time over a grid of ratios, without training, and look at the loss."""
    from topiarist.allocation.sensitivity import SensitivityTable
    from topiarist.cli.run import TABLE

    path = _run("sensitivity", recipe) / TABLE
    found = SensitivityTable.from_json(path.read_text(encoding="utf-8"))
    table = Table(
        "accuracy at", *(f"{ratio:g}" for ratio in found.ratios), title=f"without pruning: {found.accuracy:.4f}"
    )
    for layer in found.layers:
        cells = {cell.ratio: f"{cell.accuracy:.4f}" for cell in found.cells if cell.layer == layer}
        table.add_row(Text(layer), *(cells.get(ratio, "") for ratio in found.ratios))
    to = console()
    to.print(table)
    to.print(f"table: {path}", markup=False)


@app.command()
def methods(
    name: Annotated[Optional[str], typer.Argument(help="one of them; all unless given")] = None,  # noqa: UP045
) -> None:
    """List the published systems that `prune --method NAME` runs: what they cut, what they need, what they reached."""
    from topiarist.methods import METHODS, resolve

    to = console()
    if name is None:
        table = Table("method", "structure", "needs", "when", "the idea", title_justify="left")
        for each in METHODS.values():
            table.add_row(each.name, each.structure, ", ".join(each.needs), each.when, Text(each.summary))
        to.print(table)
        return
    chosen = resolve(name)
    to.print(f"{chosen.name}: {chosen.summary}", markup=False)
    for what, said in {
        "paper": chosen.paper,
        "structure": chosen.structure,
        "needs": ", ".join(chosen.needs) or "the model alone",
        "when": f"{chosen.when} training",
        "published": chosen.headline,
        "options": ", ".join(f"{key}={value!r}" for key, value in chosen.options.items()) or "none of its own",
    }.items():
        to.print(f"  {what}: {said}", markup=False)


@app.command()
@takes((*LOOK, "uniform"))
def explain(
    recipe: Recipe,
    name: Annotated[Optional[str], typer.Argument(help="an axis, tensor or module; all axes unless given")] = None,  # noqa: UP045
) -> None:
    """Show the axes of a network: what is tied to what, what may shrink, what is pinned, and why."""
    from topiarist.cli.task import Task
    from topiarist.graph import trace
    from topiarist.graph.explain import WIDTH, summary

    to = console()
    with Stages(to) as stages:
        task = Task.of(recipe, stages)
    axes = trace(task.model, task.example_inputs, recipe.uniform)
    width = to.width if to.is_terminal else WIDTH
    to.print(summary(axes, width) if name is None else axes.explain(name), markup=False)


@app.command()
@takes(LOOK)
def measure(recipe: Recipe) -> None:
    """Measure a network: parameters, non-zeros, MACs, bytes, memory, latency, and accuracy on the test data."""
    from topiarist.cli.task import Task
    from topiarist.measure import measure as measured
    from topiarist.report import numbers

    to = console()
    with Stages(to) as stages:
        task = Task.of(recipe, stages)
        stage = stages.stage("measure", 2)
        found = measured(task.model, task.example_inputs)
        stage.at(1, 2)
        read = task.evaluate(task.model)
        stage.at(2, 2)
    table = Table(title=f"{recipe.model or recipe.arch}, one example", title_justify="left", show_header=False)
    for what, text in {
        "parameters": numbers.count(found.num_params),
        "non-zeros": numbers.count(found.num_nonzero),
        "MACs": numbers.count(found.macs),
        "MACs without zeros": numbers.count(found.nonzero_macs),
        "in memory": numbers.count(found.bytes_in_memory, "B"),
        "on disk": numbers.count(found.bytes_on_disk, "B"),
        "activations, at most": numbers.count(found.peak_activation_bytes, "B"),
        f"latency, {found.num_threads} threads": numbers.milliseconds(found.latency_ms),
        **{f"{key} on the test data": numbers.fraction(value) for key, value in read.items()},
    }.items():
        table.add_row(what, text)
    to.print(table)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="the folder of a run")]) -> None:
    """Write the report of a completed run again, from its record."""
    from topiarist.cli.run import read_record, write_report

    to = console()
    record = read_record(folder)
    to.print(closing_table(record))
    to.print(f"report: {write_report(record, folder)}", markup=False)


@app.command()
def demo(out: Annotated[Path, typer.Option(help="folder of the run")] = Path("runs/demo")) -> None:
    """Train a small network on handwritten digits, prune it in two ways, and report; about a minute."""
    from topiarist.cli.demo import run

    to = console()
    record, report_path, notes = run(out, to)
    to.print(closing_table(record))
    for note in notes:
        to.print(note, markup=False)
    to.print(f"report: {report_path}", markup=False)


def main() -> None:
    """The command line."""
    app()
