# The commands of the project. Each sets up what it needs first and is quick when nothing has changed.
#   make demo    install, then prune a small network and write its report
#   make test    install, then the tests         (make test ARGS="tests/test_cli.py -x")
#   make check   linter, formatter and type checker
#   make bench   the benchmarks, as ratios measured in one interleaved run
#   make evidence        every experiment of bench/experiments on real data (DATA=…): many hours, resumable
#   make evidence-quick  what of it ends in minutes, in a folder of its own
#   make zoo     every model of torchvision, timm and transformers through trace, shrink and proof: hours, resumable
#   make tenth   a fixed tenth of these, compared with the committed rows; both in an environment of their own
#   make docs    regenerate docs/cli.md from the commands themselves
# PYTHON=python3.12 chooses the interpreter, VENV=… the place of the environment.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2
ARGS ?=
DATA ?= ../shared/data

.PHONY: demo test check bench docs evidence evidence-quick zoo tenth

demo: $(STAMP)
	$(BIN)/topiarist demo $(ARGS)

test: $(STAMP)
	$(BIN)/pytest -n $(WORKERS) --dist worksteal -rs $(ARGS)

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script $(ARGS); done

evidence: .venv-zoo/.installed
	@set -e; for script in $$(grep -l '^def main' bench/experiments/*.py); do echo "== $$script"; \
		.venv-zoo/bin/python $$script $$(grep -q 'arguments(' $$script && echo "--data $(DATA)") $(ARGS); done

evidence-quick: $(STAMP)
	@set -e; for script in $$(grep -l 'quick' bench/experiments/*.py | grep -v cells); do echo "== $$script"; \
		$(BIN)/python $$script --data $(DATA) --quick $(ARGS); done

zoo: .venv-zoo/.installed
	.venv-zoo/bin/python zoo/run.py torchvision timm transformers $(ARGS)

tenth: .venv-zoo/.installed
	.venv-zoo/bin/python -m pytest -q tests/test_transformers.py
	.venv-zoo/bin/python zoo/run.py torchvision timm transformers --tenth --workers $(WORKERS)

.venv-zoo/.installed: pyproject.toml constraints.txt
	@test -x .venv-zoo/bin/python || $(PYTHON) -m venv .venv-zoo
	.venv-zoo/bin/python -m pip install --quiet --disable-pip-version-check -e ".[dev]" -c constraints.txt
	.venv-zoo/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt torchvision==0.28.0 timm==1.0.31 torch-pruning==1.6.1
	.venv-zoo/bin/python -m pip install --quiet --disable-pip-version-check transformers==5.23.0 -c constraints.txt
	@touch $@

docs: $(STAMP)
	$(BIN)/typer topiarist.cli.app utils docs --name topiarist --output docs/cli.md

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "no python3 found; name one: make PYTHON=/path/to/python3.11 …"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]" -c constraints.txt
	@touch $@
