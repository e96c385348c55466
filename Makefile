# `make help` lists the targets.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup run test lint long bench gpu tables lock clean

help:  ## List the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## (.*)/\1\t\2/' | expand -t 10

setup: .venv/installed  ## Create .venv with the pinned packages of requirements.lock

# The stamp is made last, so that make repeats an interrupted set-up.
.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
		|| { echo "error: no Python from 3.11 to 3.13 found; name one with make PYTHON=<path>" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable ".[dev]"
	@touch $@

run: setup  ## Train the quickstart: accuracy holds while the CoT leaves, minutes on 2 cores
	$(BIN)/python -m stepwise_pl.train experiment=quickstart

test: setup lint  ## Lint, type check and tests
	$(BIN)/pytest

lint: setup  ## Lint and type check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

long: setup  ## The tests that take long
	$(BIN)/pytest -m long -n 1

bench: setup  ## Measure a training step, an evaluation and a start on this machine (run nothing else meanwhile)
	$(BIN)/python experiments/speed/benchmark.py out=outputs/bench

# The Python of .venv if there is one, else the active python3, or PYTHON=<path>; it has to have the packages.
gpu: PYTHON = python3
gpu:  ## Check and measure on one CUDA card, then train there; 10 minutes, a second call goes on, nothing is installed
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) experiments/speed/gpu

tables: setup  ## Write the tables of experiments/*/README.md from the csv files beside them
	$(BIN)/python experiments/tables.py

lock: setup  ## Write the installed versions to requirements.lock
	(echo "# Exact versions that make installs; written by make lock."; \
		$(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//') > requirements.lock

clean:  ## Remove the environment and caches (not outputs/)
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis
