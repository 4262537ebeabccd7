"""The house is in order: documents say what the code does, imports run one way, nothing foreign lies about."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import typer.main

from topiarist.cli.app import app
from topiarist.graph import rules

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "topiarist"

# Whoever stands further down may import from whoever stands further up, and never the other way round.
ROOMS = """
    errors asked held strides plan inputs outputs data models
    graph stats saliency structure allocation schedule
    mask shrink recover io measure
    planning journal pruning pruner methods report testing
    cli
"""
PIPELINE = ROOMS.split()
OPTIONAL = {"datasets", "torchvision", "timm", "transformers"}  # imported where they are used, never at once
SLOW = ("altair", "datasets", "sklearn", "typer", "vl_convert", "jinja2", "PIL")  # not part of `import topiarist`

# Machine paths and registry hosts; as a pattern, none of them is what it looks for.
FOREIGN = re.compile(
    r"(?<![\w.])/(?:work|home|root|Users)/|"
    r"pypi\.org|pythonhosted\.org|download\.pytorch\.org|(?:index-url|find-links)[ =]"
)


def python_files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def tracked_files() -> list[Path]:
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


# ------------------------------------------------------------------ documents


def test_the_readme_begins_with_the_two_commands() -> None:
    first = (ROOT / "README.md").read_text().splitlines()[:3]
    assert first[0] == "```sh"
    assert first[1].startswith("make demo ")
    assert first[2].startswith("make test ")


DOCUMENTS = sorted(path for path in (ROOT / "README.md", *ROOT.glob("docs/**/*.md")) if "```python" in path.read_text())


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_code_of_a_document_prints_what_it_claims(path: Path) -> None:
    """Every block of Python, one after the other, runs; what it prints is the block of text that follows it."""
    text, scope, known = path.read_text(), {}, dict(rules.RULES)
    blocks = list(re.finditer(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", text, re.DOTALL))
    assert len(blocks) == text.count("```python")
    if {name.split(".")[0] for name in imported(ast.parse("\n".join(block[1] for block in blocks)))} & OPTIONAL:
        pytest.skip("run where its optional packages are, with their own tests")
    try:
        for block in blocks:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(block[1], path.name, "exec"), scope)  # noqa: S102 our own document
            assert printed.getvalue() == (block[2] or "")
    finally:
        rules.RULES.clear()
        rules.RULES.update(known)


def test_the_map_of_rooms_is_complete() -> None:
    rooms = {path.name for path in SOURCE.iterdir() if (path / "__init__.py").exists()}
    listed = set(re.findall(r"^  (\w+)/ ", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert listed == rooms


def test_every_option_in_the_documents_exists() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    uses = [
        use for path in documents for use in re.findall(r"topiarist (\w+)((?: --?[\w-]+(?: \S+)?)+)", path.read_text())
    ]
    assert uses
    for command, text in uses:
        known = {name for parameter in commands[command].params for name in parameter.opts} | {"--help"}
        assert set(re.findall(r"(?<= )--[\w-]+", text)) <= known, (command, text)


def test_the_reference_of_the_commands_is_current(tmp_path: Path) -> None:
    made = tmp_path / "cli.md"
    program = Path(sys.executable).with_name("typer")
    options = ["topiarist.cli.app", "utils", "docs", "--name", "topiarist", "--output", str(made)]
    subprocess.run([program, *options], check=True, capture_output=True)
    assert made.read_text() == (ROOT / "docs" / "cli.md").read_text(), "run `make docs`"


def test_links_between_documents_lead_somewhere() -> None:
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)):
            assert (path.parent / target).exists(), (path.name, target)


# ------------------------------------------------------------------ code


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> Iterator[str]:
    """The dotted names that a file imports; names from the package's root count as its rooms."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [f"topiarist.{alias.name}" for alias in node.names]
            yield from names if node.module == "topiarist" else [node.module]


def upward(name: str, tree: ast.AST) -> Iterator[str]:
    """Imports of ``room`` from rooms that stand after it in the pipeline, or from the package's root."""
    for module in imported(tree):
        if module.split(".")[0] == "topiarist":
            other = ([*module.split("."), ""])[1]
            if other not in PIPELINE or PIPELINE.index(other) > PIPELINE.index(name):
                yield f"{name} imports {module}"


def test_imports_run_one_way() -> None:
    assert {room(path) for path in python_files()} == {*PIPELINE, "__init__"}, "every room has its place in PIPELINE"
    files = [path for path in python_files() if room(path) != "__init__"]
    assert [found for path in files for found in upward(room(path), ast.parse(path.read_text()))] == []


@pytest.mark.parametrize("line", ["import topiarist.cli", "from topiarist import cli", "from topiarist.cli import x"])
def test_an_import_against_the_pipeline_is_caught(line: str) -> None:
    assert list(upward("graph", ast.parse(f"def f():\n    {line}"))) == ["graph imports topiarist.cli"]
    assert not list(upward("cli", ast.parse(line)))


def test_optional_packages_are_imported_where_they_are_used() -> None:
    for path in python_files():
        at_once = ast.Module([n for n in ast.parse(path.read_text()).body if not isinstance(n, ast.FunctionDef)], [])
        found = {name.split(".")[0] for node in at_once.body for name in imported(ast.Module([node], []))}
        functions = [n for node in at_once.body for n in ast.walk(node) if isinstance(n, ast.FunctionDef)]
        inside = {name.split(".")[0] for function in functions for name in imported(function)}
        assert not (found - inside) & OPTIONAL, path


def test_importing_topiarist_is_light() -> None:
    code = f"import sys, topiarist; print([name for name in {SLOW!r} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def undocumented(tree: ast.Module) -> Iterator[str]:
    """Public functions, classes and methods without a docstring; torch's own protocol of modules needs none."""
    nodes: list[ast.AST] = [*tree.body]
    nodes += [method for node in tree.body if isinstance(node, ast.ClassDef) and public(node) for method in node.body]
    for node in nodes:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and public(node) and not ast.get_docstring(node):
            yield node.name


def public(node: ast.FunctionDef | ast.ClassDef) -> bool:
    if any(isinstance(decorator, ast.Name) and decorator.id == "overload" for decorator in node.decorator_list):
        return False  # what is overloaded is said once
    return not node.name.startswith("_") and node.name not in ("forward", "extra_repr")


def test_public_things_have_docstrings() -> None:
    files = [path for path in python_files() if room(path) != "testing"]  # there the names of tests and networks say it
    assert {path.name: names for path in files if (names := [*undocumented(ast.parse(path.read_text()))])} == {}
    assert [*undocumented(ast.parse("class A:\n    '''A.'''\n    def f(self): ...\ndef _g(): ..."))] == ["f"]


# ------------------------------------------------------------------ the repository


def foreign(lines: Iterable[str]) -> list[str]:
    return [line.strip() for line in lines if FOREIGN.search(line)]


def test_no_machine_path_and_no_registry_host() -> None:
    found = {}
    for path in tracked_files():
        with contextlib.suppress(UnicodeDecodeError):
            if lines := foreign(path.read_text(encoding="utf-8").splitlines()):
                found[path.name] = lines
    assert found == {}


@pytest.mark.parametrize("words", [("", "home", "me"), ("https:", "", "py" + "pi.org", "simple"), ("", "work", "main")])
def test_what_is_foreign_is_caught(words: tuple[str, ...]) -> None:
    line = "/".join(words)
    assert foreign([line, "../shared/data", "a/work/b", "https://vega.github.io"]) == [line]


def test_set_up_goes_through_the_constraints() -> None:
    for path in (ROOT / "README.md", ROOT / "Makefile", ROOT / ".ci" / "run", ROOT / "CONTRIBUTING.md"):
        for line in path.read_text().splitlines():
            assert "pip install" not in line or "-c constraints.txt" in line, line
    assert "torch==2.13.0\n" in (ROOT / "constraints.txt").read_text()
