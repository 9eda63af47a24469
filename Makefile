# make help lists the targets. Everything runs in .venv, made once and renewed when
# pyproject.toml or constraints.txt change.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
READY := $(VENV)/.installed
READY_DEV := $(VENV)/.installed-dev
# Tests that start Ray wait for it half of their time: two files at a time.
TWO := -n 2 --dist loadfile
ARGS ?=

.PHONY: help quickstart test check chaos clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(READY) ## text to trained GPT to generated text, on this machine (ARGS="--section.field VALUE")
	@$(BIN)/herd pipeline --config jobs/configs/quickstart.yaml $(ARGS)

test: $(READY_DEV) ## all tests, with a handful of kills
	$(BIN)/pytest -n auto tests/unit $(ARGS)
	$(BIN)/pytest $(TWO) tests/on_ray $(ARGS)
	$(BIN)/pytest $(TWO) tests/e2e $(ARGS)
	HERD_CHAOS_SCHEDULES=$${HERD_CHAOS_SCHEDULES:-1} $(BIN)/pytest $(TWO) tests/chaos $(ARGS)

check: $(READY_DEV) ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

chaos: $(READY_DEV) ## 100 schedules of kills in mid-run, each of which must end with one hash
	HERD_CHAOS_SCHEDULES=100 $(BIN)/pytest tests/chaos $(ARGS)

clean: ## remove the environment and the caches, not what jobs wrote
	rm -rf $(VENV) build dist .hypothesis .import_linter_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/pip:
	@for python in $(PYTHON) python3 python3.13 python3.12 python3.11 python3.14; do \
	  if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "making $(VENV) with $$("$$python" --version)"; \
	    exec "$$python" -m venv $(VENV); \
	  fi; \
	done; \
	echo "python3: found $$(python3 --version 2>&1 || true); expected Python >= 3.11; install it or name one: make PYTHON=/path/to/python3" >&2; \
	exit 1

$(READY): pyproject.toml constraints.txt | $(BIN)/pip
	@echo "installing the pinned dependencies into $(VENV) (once, some minutes)"
	@$(INSTALL) -e '.[fast]'
	@touch $@

$(READY_DEV): $(READY)
	@echo "adding the tools of the checks and tests to $(VENV)"
	@$(INSTALL) -e '.[fast,music,applications,dev]'
	@touch $@
