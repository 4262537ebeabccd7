"""The command line: what each command does, what it refuses, and that a stopped run goes on to the same result."""

from __future__ import annotations

import io
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from topiarist.allocation.sensitivity import SensitivityTable
from topiarist.cli.app import app
from topiarist.cli.console import Stage, Stages
from topiarist.io import load_plan
from topiarist.report import RunRecord, build

TINY = """
import time
from types import SimpleNamespace
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Dropout(0.1), nn.Linear(12, 3))

class Configured(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(16, config.width), nn.ReLU(),
                                    nn.Linear(config.width, config.width), nn.ReLU(), nn.Linear(config.width, 3))

    def forward(self, x):
        return self.layers(x)

    def save_pretrained(self, folder):
        folder.mkdir()
        (folder / "width").write_text(str(self.config.width))

    @classmethod
    def from_pretrained(cls, folder):
        return cls(SimpleNamespace(width=int((folder / "width").read_text())))

def configured():
    return Configured(SimpleNamespace(width=12))

def loaders():
    x = torch.randn(96, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    y = x.flatten(1)[:, :3].argmax(1)
    return [(x[i : i + 16], y[i : i + 16]) for i in range(0, 64, 16)], [(x[64:], y[64:])]

class Slow(list):
    def __iter__(self):
        for batch in super().__iter__():
            time.sleep(0.05)
            yield batch

def slow():
    train, test = loaders()
    return Slow(train), test

def l3(slices):
    return sum(w.abs().pow(3).sum(1) for w in slices.weights)

def steep(progress, final):
    return final * progress ** 0.5

def empty():
    return [], []

def triples():
    return [(1, 2, 3)], [(1, 2, 3)]

def fails():
    raise RuntimeError("out of luck")

def number():
    return 3
"""
OWN = "--model tinynet:net --data tinynet:loaders --threads 1"
RUN = f"prune {OWN} --epochs 2 --sparsity 0.6 --schedule cubic --steps 3 --recover-epochs 1 --out out"


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with the user's module in it, and no time for timing."""
    (tmp_path / "tinynet.py").write_text(TINY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "tinynet", raising=False)
    monkeypatch.setattr(build, "_SECONDS", 0.01)


def run(command: str, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(app, shlex.split(command))
    assert result.exit_code == exit_code, result.output
    assert "Traceback" not in result.output
    return result


def record(folder: str) -> RunRecord:
    return RunRecord.from_json((Path(folder) / "record.json").read_text())


def weights(folder: str) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def equal(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# ------------------------------------------------------------------ what the commands do


def test_the_command_of_the_seed_trains_prunes_and_fine_tunes() -> None:
    output = run('prune --epochs 10 --lr 0.1 --log-interval 100 --arch "my" --threads 1 --out out').output
    assert "train: 100 of 230, loss" in output
    assert "train: 200 of 230, loss" in output
    dense, masked = record("out").variants
    assert dense.accuracy is not None
    assert masked.accuracy is not None
    assert dense.accuracy > 0.97
    assert masked.accuracy > 0.95
    assert load_plan("out/model").achieved["sparsity"] == pytest.approx(0.9, abs=1e-4)  # type: ignore[union-attr]
    table = output.replace("-", " ")
    for row in ("accuracy", "parameters", "non zeros", "MACs", "on disk", "latency", "theoretical", "measured"):
        assert row in table
    assert "report: out/report.html" in output
    assert Path("out/report.html").exists()


def test_channels_of_the_users_own_network() -> None:
    functions = "--saliency tinynet:l3 --schedule tinynet:steep"
    run(f"prune {OWN} --epochs 2 --structure channel --macs 0.5 {functions} --out out")
    dense, shrunk = record("out").variants
    assert shrunk.name == "shrunk"
    assert shrunk.macs == dense.macs / 2  # type: ignore[operator]
    assert {tuple(row.shape_after) for row in record("out").layers} == {(6, 16), (3, 6)}
    assert record("out").command == "topiarist prune --recipe out/recipe.yaml"


def test_a_recipe_repeats_its_run_and_another_seed_does_not() -> None:
    run(RUN)
    run("prune --recipe out/recipe.yaml --out again")
    run("prune --recipe out/recipe.yaml --out other --seed 1")
    assert equal(weights("out/model"), weights("again/model"))
    assert record("out").curve == record("again").curve
    assert not equal(weights("out/model"), weights("other/model"))


def test_a_completed_run_is_shown_and_a_different_one_is_refused() -> None:
    run(RUN)
    before = Path("out/model/model.safetensors").stat().st_mtime_ns
    assert "holds this run already" in run(RUN).output
    assert Path("out/model/model.safetensors").stat().st_mtime_ns == before
    refused = run(RUN.replace("--sparsity 0.6", "--sparsity 0.7"), 2)
    assert "sparsity: 0.6 there, 0.7 now" in refused.output


def test_train_then_prune_from_its_weights() -> None:
    run(f"train {OWN} --epochs 2 --out trained")
    assert {p.name for p in Path("trained").iterdir()} == {
        *("recipe.yaml", "dense", "training.json", "record.json", "report.html")
    }
    run(f"prune {OWN} --weights trained/dense --recover none --out a")
    run(f"prune {OWN} --weights trained/dense/model.safetensors --recover none --out b")
    assert equal(weights("a/dense"), weights("trained/dense"))  # epochs is 0 where weights are given
    assert equal(weights("a/model"), weights("b/model"))


@pytest.mark.parametrize(
    "options",
    [
        "--recover rewind --rewind-to 0.5 --sparsity 0.5",
        "--recover lr-rewind --schedule exponential --steps 2 --compression 2",
        "--recover reinitialize --schedule constant-fraction --sparsity 0.5",
        "--recover none --allocation 1.*=0.5,Linear=0.25",
        "--recover none --allocation sensitivity --grid 0.5,0.9 --sparsity 0.5",
        "--recover none --saliency gradient --allocation uniform --structure channel --sparsity 0.25",
    ],
)
def test_every_way_to_prune(options: str) -> None:
    run(f"prune {OWN} --epochs 1 --out out {options}")
    assert len(record("out").variants) == 2
    assert ("sensitivity" in options) == (record("out").sensitivity is not None)


def test_sensitivity_writes_a_table_and_a_heat_map() -> None:
    output = run(f"sensitivity {OWN} --epochs 1 --grid 0.5,0.9 --out out").output
    assert "1.weight" in output
    assert "table: out/sensitivity.json" in output
    table = record("out").sensitivity
    assert table is not None
    assert [(row.layer, row.ratio) for row in table.rows] == [
        *(("1.weight", 0.5), ("1.weight", 0.9)),
        *(("4.weight", 0.5), ("4.weight", 0.9)),
    ]


def test_sizes_tied_by_the_config_are_saved_by_the_model_itself() -> None:
    own = OWN.replace(":net", ":configured")
    run(f"prune {own} --epochs 1 --recover none --structure channel --macs 0.5 --uniform config --out out")
    width = int(Path("out/pretrained/width").read_text())
    shapes = {name: tuple(tensor.shape) for name, tensor in weights("out/model").items() if "weight" in name}
    assert [*shapes.values()] == [(width, 16), (width, width), (3, width)]
    assert "uniform: config" in Path("out/recipe.yaml").read_text()
    assert "together with 1 of layers.3.weight:0" in run(f"explain {own} layers.1 --uniform config").output


def test_explain_shows_axes_and_says_why() -> None:
    output = run(f"explain {OWN}").output
    assert "1.weight:0" in output
    assert "pinned" in output
    said = run(f"explain {OWN} 4").output
    assert "pinned because it is a dimension of the model's output" in said


def test_measure_counts() -> None:
    output = run(f"measure {OWN}").output
    assert "parameters" in output
    assert "243" in output  # 16·12 + 12 + 12·3 + 3
    assert "228" in output  # multiply–accumulates: 16·12 + 12·3


def test_report_is_made_again_from_the_record() -> None:
    run(RUN)
    page = Path("out/report.html").read_bytes()
    Path("out/report.html").unlink()
    assert "report: out/report.html" in run("report out").output
    assert Path("out/report.html").read_bytes() == page


def test_a_folder_of_parquet_files() -> None:
    datasets = pytest.importorskip("datasets")
    image = pytest.importorskip("PIL.Image")
    Path("pictures").mkdir()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=3)})
    for split in ("train", "test"):
        rows = {"image": [image.new("L", (8, 8), 20 * i) for i in range(9)], "label": [i % 3 for i in range(9)]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(f"pictures/{split}.parquet")
    output = run("measure --data pictures").output
    assert "accuracy on the test data" in output


# ------------------------------------------------------------------ bad input: a clear error, nothing left behind


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"prune {OWN} --sparsity 1.5", "sparsity must lie in [0, 1]"),
        (f"prune {OWN} --sparsity nan", "sparsity must lie in [0, 1]"),
        (f"prune {OWN} --sparsity 0.5 --macs 0.5", "sparsity and macs are given"),
        (f"prune {OWN} --structure channel --macs 0.0001", "nearest is macs="),
        (f"prune {OWN} --structure channel --uniform config", "names no attribute of Sequential that holds a config"),
        (f"prune {OWN} --keep head.*", "keep='head.*' matches no module"),
        (f"prune {OWN} --allocation conv=0.5", "'conv' fits no layer"),
        (f"prune {OWN} --structure chanel", "(nearest: channel"),
        (f"prune {OWN} --saliency l3", "no saliency is called 'l3'"),
        (f"prune {OWN} --schedule qubic", "(nearest: cubic"),
        (f"prune {OWN} --recover finetune", "(nearest: fine-tune"),
        (f"prune {OWN} --recover rewind --epochs 0", "epochs is 0"),
        (f"prune {OWN} --optimizer sgb", "(nearest: sgd"),
        (f"prune {OWN} --loss mse", "no loss is called 'mse'"),
        (f"prune {OWN} --device nowhere", "device 'nowhere' cannot be used"),
        (f"prune {OWN} --weights none.safetensors", "there is no file none.safetensors"),
        (f"prune {OWN} --weights tinynet.py", "damaged or not a safetensors file"),
        (f"prune {OWN} --weights .", "no saved model at ."),
        ("prune --arch mi", "no network is called 'mi'"),
        ("prune --arch my --model tinynet:net", "arch and model are given"),
        ("prune --model tinynet", "package.module:factory"),
        ("prune --model tinynet:nat", "(nearest: net"),
        ("prune --model nomodule:net", "could not be imported"),
        ("prune --model tinynet:fails", "out of luck"),
        ("prune --model tinynet:number", "returned int"),
        ("prune --model tinynet:net --data digits", "does not run on the example inputs"),
        ("prune --data tinynet:empty", "yields no batch"),
        ("prune --data tinynet:triples", "a batch is a pair"),
        ("prune --data ./missing", "./missing is not a folder"),
        ("prune --recipe missing.yaml", "missing.yaml cannot be read"),
        ("prune --recipe unknown.yaml", "no option is called 'sparsty'"),
        ("report .", ". holds no record.json"),
        (f"explain {OWN} fc9", "no axis, tensor or module is called 'fc9'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_made(command: str, message: str) -> None:
    Path("unknown.yaml").write_text("sparsty: 0.9\n")
    before = sorted(Path().iterdir())
    result = run(command, 2)
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert sorted(p for p in Path().iterdir() if p.name != "__pycache__") == before


def test_weights_that_do_not_fit_are_named() -> None:
    save_file({"1.weight": torch.zeros(12, 16)}, "few.safetensors")
    assert "has no 1.bias" in run(f"measure {OWN} --weights few.safetensors", 2).stderr
    shapes = {"1.weight": (12, 9), "1.bias": (12,), "4.weight": (3, 12), "4.bias": (3,)}
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, "narrow.safetensors")
    assert "(12, 9) there, (12, 16)" in run(f"measure {OWN} --weights narrow.safetensors", 2).stderr


def test_a_damaged_record_is_refused() -> None:
    Path("record.json").write_text('{"format": "other"}')
    assert "not a topiarist-run" in run("report .", 2).stderr


# ------------------------------------------------------------------ Ctrl-C, and going on


def interrupt_at(monkeypatch: pytest.MonkeyPatch, method: str, number: int) -> None:
    """A Ctrl-C in the ``number``-th call of ``Stage.training``, ``Stage.pruning`` or ``Stage.at``."""
    original, count = getattr(Stage, method), iter(range(1, 1000))

    def show(stage: Stage, *shown: Any) -> None:
        original(stage, *shown)
        if next(count) == number:
            raise KeyboardInterrupt

    monkeypatch.setattr(Stage, method, show)


@pytest.mark.parametrize(
    ("method", "number", "options"),
    [
        ("training", 1, ""),
        ("training", 5, ""),
        ("pruning", 2, ""),
        ("pruning", 7, ""),
        ("pruning", 10, "--recover rewind --rewind-to 0.5"),
        ("pruning", 70, "--saliency gradient --model topiarist.models:DigitsNet --data digits"),
        ("pruning", 15, "--saliency random --structure channel --macs 0.5"),
    ],
)
def test_a_stopped_run_goes_on_to_the_same_result(
    monkeypatch: pytest.MonkeyPatch, method: str, number: int, options: str
) -> None:
    command = (RUN.replace(" --sparsity 0.6", "") if "--macs" in options else RUN) + f" {options}"
    run(command.replace("--out out", "--out whole"))
    with monkeypatch.context() as patched:
        interrupt_at(patched, method, number)
        stopped = run(command, 130)
    assert "go on from the last completed step with: topiarist prune --recipe out/recipe.yaml" in stopped.stderr
    assert not Path("out/record.json").exists()
    run("prune --recipe out/recipe.yaml")
    assert equal(weights("out/model"), weights("whole/model"))
    assert record("out").curve == record("whole").curve
    assert record("out").history == record("whole").history
    assert not list(Path("out").glob("steps*"))


def test_a_stopped_sensitivity_scan_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    command = f"sensitivity {OWN} --epochs 1 --grid 0.5,0.9 --out out"
    with monkeypatch.context() as patched:
        interrupt_at(patched, "at", 6)  # four steps of training, then the second cell of four
        run(command, 130)
    assert len(SensitivityTable.from_json(Path("out/sensitivity.json").read_text()).cells) == 2
    run(command)
    run(command.replace("--out out", "--out whole"))
    assert Path("out/sensitivity.json").read_text() == Path("whole/sensitivity.json").read_text()


def test_a_real_ctrl_c() -> None:
    command = [sys.executable, "-c", "from topiarist.cli import main; main()"]
    options = RUN.replace("tinynet:loaders", "tinynet:slow").replace("--epochs 2", "--epochs 20 --log-interval 1")
    process = subprocess.Popen(
        [*command, *shlex.split(options)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("train: 3 of 80"):
            break
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "go on from the last completed step" in errors
    assert "Traceback" not in errors
    assert time.monotonic() - started < 30
    assert any(Path("out/checkpoints").iterdir())


# ------------------------------------------------------------------ progress


def shown(terminal: bool, log_interval: int = 0) -> str:
    to = Console(file=io.StringIO(), force_terminal=terminal, width=100, highlight=False)
    with Stages(to, log_interval) as stages:
        stage = stages.stage("train")
        for step in range(40):
            stage.training({"step": step, "num_steps": 40, "loss": 1.5, "lr": 0.1})
        stage = stages.stage("prune")
        for step in (1, 2):
            for batch in range(3):
                row = {
                    "pruning_step": step,
                    "num_pruning_steps": 2,
                    "step": batch,
                    "num_steps": 3,
                    "loss": 1.0,
                    "lr": 1,
                }
                stage.pruning(row)
            stage.pruning({"step": step, "num_steps": 2, "sparsity": step / 4, "accuracy": 0.5})
    assert isinstance(to.file, io.StringIO)
    return to.file.getvalue()


def test_a_terminal_gets_live_bars() -> None:
    text = shown(terminal=True)
    assert "━" in text
    assert "40/40" in text
    assert "6/6" in text
    assert "train: " not in text
    assert "prune, step 2 of 2: sparsity 0.5000, accuracy 0.5000" in text


def test_elsewhere_a_few_plain_lines() -> None:
    lines = shown(terminal=False).splitlines()
    assert lines[0] == "train: 8 of 40, loss 1.5000, lr 0.1"
    assert lines[4] == "train: 40 of 40, loss 1.5000, lr 0.1"
    assert len(lines) == 5 + 5 + 2  # five lines a stage, and one for each pruning step
    assert not any("━" in line or "\x1b" in line for line in lines)


def test_the_log_interval_is_kept() -> None:
    assert re.findall(r"train: (\d+) of 40, loss", shown(terminal=True, log_interval=15)) == ["15", "30"]
    assert re.findall(r"train: (\d+) of 40, loss", shown(terminal=False, log_interval=15)) == ["15", "30", "40"]


# ------------------------------------------------------------------ the program itself


def test_help_and_version_of_the_installed_program() -> None:
    program = Path(sys.executable).with_name("topiarist")
    environment = {**os.environ, "COLUMNS": "100"}
    helped = subprocess.run([program, "--help"], capture_output=True, text=True, env=environment, check=True)
    for command in ("train", "prune", "sensitivity", "explain", "measure", "report", "demo"):
        assert f"\n  {command} " in helped.stdout
    assert run("--version").output.strip()
    assert "Missing command" in run("", 2).output or "Usage" in run("", 2).output
