"""Recipes: every option validated, unknown keys refused with the nearest name, written so that they read back equal."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer.main
import yaml
from hypothesis import given
from hypothesis import strategies as st

from topiarist.cli.app import app
from topiarist.cli.recipe import Recipe, make, read
from topiarist.errors import InputError

DOCS = Path(__file__).parents[1] / "docs"


def test_an_unknown_key_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("arch: my\nsparsty: 0.9\n")
    with pytest.raises(InputError, match=r"run\.yaml: no option is called 'sparsty' \(nearest: sparsity"):
        read(tmp_path / "run.yaml", {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr: fast", "lr: .*valid number.* got 'fast'"),
        ("epochs: -1", "epochs: .*greater than or equal to 0.* got -1"),
        ("lr: .nan", "lr: .*finite"),
        ("steps: 0", "steps: .*greater than or equal to 1"),
        ("rewind_to: 1.5", "rewind_to: .*less than or equal to 1"),
        ("mean: 0.1, x", "mean: .*valid number"),
        ("allocation: conv*=most", "allocation: .*valid number"),
        ("arch: my\nmodel: a:b", "arch and model are given"),
        ("macs: 0.5\nsparsity: 0.9", "sparsity and macs are given"),
        ("- arch", "must map options to values"),
        ("arch: [", "is not YAML"),
        ("", "must map options to values"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        read(tmp_path / "run.yaml", {})


def test_nothing_in_a_recipe_is_executed(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("arch: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(InputError, match="is not YAML"):
        read(tmp_path / "run.yaml", {})


def test_the_command_line_takes_precedence(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("arch: lenet5\nmacs: 0.5\nlr: 0.2\nbatch-size: 32\n")
    recipe = read(tmp_path / "run.yaml", {"sparsity": 0.8, "lr": 0.1})
    assert (recipe.arch, recipe.budget, recipe.lr, recipe.batch_size) == ("lenet5", {"sparsity": 0.8}, 0.1, 32)
    assert read(tmp_path / "run.yaml", {"model": "a:b"}).arch is None


def test_defaults_follow_from_the_other_options() -> None:
    assert make({}).budget == {"sparsity": 0.9}
    assert make({"structure": "channel"}).budget == {"macs": 0.5}
    assert make({"allocation": "fc*=0.5"}).budget == {}
    assert (make({}).epochs, make({"weights": "w"}).epochs, make({"weights": "w", "epochs": 3}).epochs) == (10, 0, 3)
    assert (make({}).arch, make({"model": "a:b"}).arch) == ("my", None)


def test_a_folder_of_its_own_for_every_set_of_options() -> None:
    same = [make({}), make({"log_interval": 7}), make({"sparsity": 0.9})]
    other = [make({"lr": 0.05}), make({"model": "a:my"}), make({"sparsity": 0.8})]
    assert len({recipe.folder("prune") for recipe in same}) == 1
    assert len({recipe.folder("prune") for recipe in [*same, *other]}) == 4
    assert make({"out": "here"}).folder("prune") == Path("here")


words = st.text("abcxyz.*_", min_size=1)
options = st.fixed_dictionaries(
    {},
    optional={
        "epochs": st.floats(0, 1e6),
        "lr": st.floats(0, 10),
        "flip": st.booleans(),
        "mean": st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=3),
        "keep": st.lists(words, max_size=3),
        "allocation": st.one_of(st.just("uniform"), st.dictionaries(words, st.floats(0, 1), min_size=1, max_size=3)),
        "weights": words.map(Path),
        "seed": st.integers(),
        "macs": st.floats(0, 1),
    },
)


@given(options=options)
def test_what_is_written_reads_back_equal(tmp_path_factory: pytest.TempPathFactory, options: dict[str, object]) -> None:
    recipe = make(options)
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    recipe.write(path)
    assert read(path, {}) == recipe
    assert set(yaml.safe_load(path.read_text())) >= {"arch", "lr", "batch_size"}  # defaults are written too


def test_every_option_of_a_recipe_is_one_of_prune() -> None:
    command = typer.main.get_command(app).commands["prune"]  # type: ignore[attr-defined]
    assert {parameter.name for parameter in command.params} == {*Recipe.model_fields, "recipe"}


def test_the_documented_recipes_are_valid(tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (DOCS / "recipe.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        (tmp_path / "run.yaml").write_text(block)
        read(tmp_path / "run.yaml", {})
