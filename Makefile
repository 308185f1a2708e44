# Needs Python 3.11 or newer, GNU make and a way to PyPI, nothing else. `make` alone lists the targets.

SHELL := /bin/sh
PYTHON ?= python3.11 python3 python
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
PEERS := .venv-bench
UNWALKED := -path ./.git -o -path ./$(VENV) -o -path ./$(PEERS) -o -path ./experiments -o -path ./trainsets -o -path ./testsets

.DEFAULT_GOAL := help
.PHONY: help train test drill bench peers lint types schema clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):[^#]*## /\1	/p' Makefile | expand -t 10

train: $(INSTALLED) ## train the default, options/fer.json; the same command again resumes
	$(BIN)/python main_train.py -opt options/fer.json

test: $(INSTALLED) ## run the test suite
	$(BIN)/python -m pytest

drill: $(INSTALLED) ## run the tests of many minutes: kills, disk faults, ranks that come and go
	$(BIN)/python -m pytest -m long

bench: $(INSTALLED) ## measure the trainer beside its limits and the peers, many minutes; rewrites docs/benchmarks.*
	$(if $(wildcard $(PEERS)/installed),$(PEERS)/bin,$(BIN))/python -m benchmarks.bench

peers: $(PEERS)/installed ## install the trainers that `make bench` compares with, in an environment of their own

lint: $(INSTALLED) ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED) ## check the types
	$(BIN)/mypy

schema: $(INSTALLED) ## rewrite what is generated from the options: options/schema.json and docs/options.md
	$(BIN)/python main_train.py --schema > options/.schema.tmp
	mv options/.schema.tmp options/schema.json
	$(BIN)/python -m tests.options_page --write

clean: ## remove caches; never experiments, data or the environment
	rm -rf .mypy_cache .pytest_cache .ruff_cache options/.schema.tmp
	find . \( $(UNWALKED) \) -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +

# The environment is made once, and brought up to date when requirements.txt changes.
$(INSTALLED): requirements.txt
	@suits() { "$$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }; \
	if ! suits $(BIN)/python; then \
		python=; \
		for each in $(PYTHON); do if suits "$$each"; then python=$$each; break; fi; done; \
		if [ -z "$$python" ]; then \
			echo "No Python 3.11 or newer among: $(PYTHON). Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11" >&2; \
			exit 1; \
		fi; \
		echo "Creating $(VENV) with $$("$$python" --version)"; \
		"$$python" -m venv $(VENV) || exit 1; \
	fi
	@echo "Installing requirements.txt into $(VENV); the first time takes some minutes"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@touch $@

$(PEERS)/installed: $(INSTALLED) benchmarks/requirements.txt
	@$(BIN)/python -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r benchmarks/requirements.txt
	@touch $@
