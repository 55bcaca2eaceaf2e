# Two commands on a fresh machine: `make train` and `make test`. Both set themselves up in .venv.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: train test slow check bench clean

train: .venv/run
	$(BIN)/reinforce-lite train quickstart

test: .venv/dev
	$(BIN)/python -m pytest

slow: .venv/dev
	$(BIN)/python -m pytest -m slow

check: .venv/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: .venv/bench
	$(BIN)/python benchmarks/rollout.py
	$(BIN)/python benchmarks/update.py
	$(BIN)/python benchmarks/step.py

clean:
	rm -rf .venv

.venv/run: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(PIP) --editable .
	touch $@

.venv/dev: .venv/run
	$(PIP) --editable ".[dev]"
	touch $@

.venv/bench: .venv/run
	$(PIP) --editable ".[bench]"
	touch $@
