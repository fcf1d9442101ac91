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

demo: $(VENV)/.installed  ## write a story with the embedded checkpoint, and ask for what was said before it, offline
	HF_HUB_OFFLINE=1 $(BIN)/hf-sllm generate "Once upon a time"
	HF_HUB_OFFLINE=1 $(BIN)/python examples/remember.py

test: $(VENV)/.installed-test  ## run the tests
	$(BIN)/pytest $(ARGS)

lint: $(VENV)/.installed-lint  ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: $(VENV)/.installed-docs  ## build the documentation's site, in site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:  ## remove .venv, builds and caches
	rm -rf .venv build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

# pip knows dependency groups from 25.1 on.
$(VENV)/.made:
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --upgrade "pip>=25.1"
	touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.made
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install "$(TORCH)"
	$(BIN)/python -m pip install -e .
	touch $@

# mypy reads the types of torch and transformers where they are installed.
$(VENV)/.installed-lint: $(VENV)/.installed
	$(BIN)/python -m pip install --group lint
	touch $@

# The reference is read from the source: nothing of it is imported.
$(VENV)/.installed-docs: pyproject.toml $(VENV)/.made
	$(BIN)/python -m pip install --group docs
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install -e ".[train,eval,space,trl,harness,serve]" --group test
	touch $@
