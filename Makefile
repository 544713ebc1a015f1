# From a fresh clone: `make demo`, `make demo-train` or `make test`. `make` alone lists the targets.
# pip's own settings (PIP_INDEX_URL, PIP_CERT, pip.conf ...) choose where packages and data come from.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory --no-builtin-rules

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
# Tried in this order; PYTHON=/path/to/python puts another one first.
PYTHONS := $(PYTHON) python3.11 python3

.PHONY: help demo demo-train test lint setup fetch clean

help:
	@echo "make demo    set up, fetch the data, and let the shipped model meet unseen patients (the recipe demo; about 7 minutes)"
	@echo "make demo-train    the same set-up, then every step from nothing (the recipe quickstart; about 30 minutes)"
	@echo "make test    set up, fetch the data, then lint, type-check and run all tests"
	@echo "make lint    set up, then ruff and mypy only"
	@echo "make setup   the virtual environment $(VENV) only (about 5 minutes, 6.5 GB, once)"
	@echo "make fetch   set up, then fetch the data into the user's cache (160 MB, once)"
	@echo "make clean   remove $(VENV) and the tools' caches; runs/ stays"

demo: fetch
	@$(PY) -m llmcxr run demo

demo-train: fetch
	@$(PY) -m llmcxr run quickstart

test: fetch lint
	@echo "Running the tests ..."
	@$(PY) -m pytest -n 2 --dist worksteal

lint: $(STAMP)
	@echo "Checking style and types ..."
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy

setup: $(STAMP)
	@echo "$(VENV) is ready."

fetch: $(STAMP)
	@$(PY) -m llmcxr fetch

# Made anew only where the lock or pyproject.toml changed. The stamp comes last, so a failed set-up is tried again.
$(STAMP): requirements.lock pyproject.toml
	@python=""; \
	for candidate in $(PYTHONS); do \
		if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			python="$$candidate"; break; \
		fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo "llmcxr needs Python 3.11 or later with its venv module (Debian: python3-venv); tried: $(strip $(PYTHONS))." >&2; \
		echo "Install it, or name one: make PYTHON=/path/to/python3.11 ..." >&2; \
		exit 1; \
	fi; \
	echo "Setting up $(VENV) with $$("$$python" --version) (about 5 minutes, 6.5 GB) ..."; \
	"$$python" -m venv $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

clean:
	@rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find src tests -depth -type d \( -name __pycache__ -o -name '*.egg-info' \) -exec rm -rf {} +
	@echo "Removed $(VENV) and caches. runs/ and the user's data cache are still there."
