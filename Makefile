VENV ?= .venv
PYTHON ?= python3
# Installed first and by exact version: pip then takes a CPU build where one is at hand.
TORCH ?= torch==2.13.0
# More arguments for pytest: make test ARGS="-m slow"
ARGS ?=

BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs clean

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 8

demo: $(VENV)/.installed  ## write a story with the embedded checkpoint, offline
	HF_HUB_OFFLINE=1 $(BIN)/hf-sllm generate "Once upon a time"

test: $(VENV)/.installed-test  ## run the tests
	$(BIN)/pytest $(ARGS)

lint: $(VENV)/.installed-test  ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: $(VENV)/.installed-test  ## build the documentation's site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:  ## remove .venv, builds and caches
	rm -rf .venv build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install "$(TORCH)"
	$(BIN)/python -m pip install -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install -e ".[test,train]"
	touch $@
