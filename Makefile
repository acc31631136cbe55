# make demo, make test: each alone on a fresh machine with Python >= 3.11, git and make.
# Also: make lint, make docs, make bench, make clean.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

# Real data sets, where they lie beside the checkout; tests that need them look here.
ifneq ($(wildcard ../shared/data),)
export DECOCT_DATA ?= $(abspath ../shared/data)
endif

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs bench clean

help:
	@echo "make demo   the digits recipe, from teacher to page"
	@echo "make test   style, types, direction of imports, tests"
	@echo "make lint   the first three of them"
	@echo "make docs   the documentation, in site/"
	@echo "make bench  the benchmarks, one after the other"

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("decoct needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; set PYTHON=") if sys.version_info < (3, 11) else None'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]" -c constraints.txt
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/decoct demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: export OMP_NUM_THREADS = 1
test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

docs: export NO_MKDOCS_2_WARNING = 1
docs: $(STAMP)
	$(BIN)/mkdocs build --strict --quiet

bench: $(STAMP)
	@set -e; for each in benchmarks/[a-z]*.py; do echo "python $$each"; $(BIN)/python $$each; done

clean:
	rm -rf .venv site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
