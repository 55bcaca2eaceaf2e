# Two commands on a fresh machine: `make train` and `make test`. Each sets up .venv first.

PYTHON ?= python3
BIN := .venv/bin
LOG := .venv/install.log

# pip's output goes to a log that is shown only if the installation fails: a find-links folder that does not exist
# would otherwise print warnings on some machines.
install = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	--editable "$(1)" >$(LOG) 2>&1 || { cat $(LOG); exit 1; }

.PHONY: train test slow check coverage bench clean

train: .venv/run
	$(BIN)/reinforce-lite train quickstart
	@command -v reinforce-lite >/dev/null || echo "to type reinforce-lite commands in this shell: . $(BIN)/activate"

# Two at a time: on two cores a third process only waits.
test: .venv/dev
	$(BIN)/python -m pytest --numprocesses 2

slow: .venv/dev
	$(BIN)/python -m pytest -m slow

check: .venv/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/mypy

# Not part of `make test`: without sys.monitoring (Python 3.12) measuring slows the tests by three quarters.
coverage: .venv/dev
	$(BIN)/python -m pytest --cov --cov-report=term-missing:skip-covered

bench: .venv/bench
	$(BIN)/python benchmarks/rollout.py
	$(BIN)/python benchmarks/update.py
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/rewards.py

clean:
	rm -rf .venv

.venv/run: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	@echo "setting up .venv: about 80 s, once"
	@$(PYTHON) -m venv .venv
	@$(call install,.)
	@touch $@

.venv/dev: .venv/run
	@echo "installing what tests and checks need into .venv: about 40 s, once"
	@$(call install,.[dev])
	@touch $@

.venv/bench: .venv/run
	@echo "installing TRL for the benchmarks into .venv: about 20 s, once"
	@$(call install,.[bench])
	@touch $@
