# Common commands; `make` lists them.
VENV ?= .venv
LIVE_VENV ?= .venv-live
VLLM_VERSION := 0.32.0

.DEFAULT_GOAL := help
.PHONY: help venv run test check format cov live-venv live ci constraints clean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 16

venv: ## .venv with everything for development
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install -c constraints.txt -e '.[dev]'

run: ## the first scenario
	$(VENV)/bin/simrun scenarios/quickstart.yaml --out runs/quickstart

test: ## the tests
	$(VENV)/bin/pytest

check: ## lint, formatting, types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: ## format and fix what can be fixed
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

cov: ## the tests with coverage
	$(VENV)/bin/pytest --cov=sim --cov=policies --cov-report=term --cov-fail-under=90

live-venv: ## .venv-live with the CPU build of vLLM (about 3 GB)
	.ci/live_venv $(LIVE_VENV) $(VLLM_VERSION)

live: ## decisions against vLLM's own scheduler
	$(LIVE_VENV)/bin/python -m pytest tests/live

ci: ## everything, in fresh environments
	.ci/run

constraints: ## exact versions of all dependencies, resolved afresh
	.ci/constraints > constraints.txt.new
	mv constraints.txt.new constraints.txt

clean: ## remove caches and build products
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage htmlcov
