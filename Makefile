# One virtual environment, made by any target that needs it. VENV and PYTHON can be set: make test PYTHON=python3.12
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup kernels demo test test-fast lint format bench slurm-up slurm-down clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP)  ## Install lorsa and its development tools into .venv

# The constraints reach every install, the first included: an open range would fetch gigabytes of CUDA packages.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt pip setuptools
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --build-constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup  ## Train LoRSA on the demo's SST-2 with the embedded model (under a minute)
	$(BIN)/lorsa-run method=lorsa task=sst2

# Nothing is compiled again when nothing has changed.
kernels: setup  ## Build the C++ (and, with a GPU toolkit, CUDA) kernels
	$(BIN)/python -m lorsa.kernels.build

test: setup lint kernels  ## Lint, then run all tests, on the built kernels
	$(BIN)/pytest -n auto --dist worksteal

test-fast: setup  ## Run the tests that take less than ten seconds each
	$(BIN)/pytest -n auto --dist worksteal -m 'not slow'

# mypy does not follow an editable install of mapped folders, so it gets the packages through links.
lint: setup  ## Check style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p build/types/lorsa
	@for package in conf kernels methods runner; do ln -sfn ../../../$$package build/types/lorsa/$$package; done
	MYPYPATH=build/types $(BIN)/mypy -p lorsa.kernels -p lorsa.methods -p lorsa.runner
	$(BIN)/lint-imports

format: setup  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  ## Measure start-up, padding and step time against their yardsticks
	$(BIN)/python scripts/bench_startup.py
	$(BIN)/python scripts/bench_batches.py

slurm-up:  ## Start a SLURM cluster on this machine (as root; see scripts/slurm_dev_cluster.sh)
	@bash scripts/slurm_dev_cluster.sh up

slurm-down:  ## Stop it
	@bash scripts/slurm_dev_cluster.sh down

clean:  ## Remove the virtual environment, builds and caches; runs/ stays
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
