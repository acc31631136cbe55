# make demo, make test: each alone on a fresh machine with Python >= 3.11, git and make.
# Also: make lint, make docs, make bench, make test-lowest, make lock, make lowest, make sbom, make clean.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

# Real data sets, where they lie beside the checkout; tests that need them look here.
ifneq ($(wildcard ../shared/data),)
export DECOCT_DATA ?= $(abspath ../shared/data)
endif

.DEFAULT_GOAL := help
.PHONY: help demo test test-lowest lint docs bench lock lowest sbom clean

help:
	@echo "make demo   the digits recipe, from teacher to page"
	@echo "make test   style, types, direction of imports, tests"
	@echo "make lint   the first three of them"
	@echo "make docs   the documentation, in site/"
	@echo "make bench  the benchmarks, one after the other"
	@echo "make test-lowest  some of the tests, with the lowest versions that are allowed"
	@echo "make sbom   what it is made of, in build/sbom.cdx.json"
	@echo "make lock lowest  uv.lock and constraints-lowest.txt, after a change of dependencies"

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

# Their own folders, since their versions are not those that everything is tested with.
build/lowest/.installed: pyproject.toml constraints-lowest.txt
	test -x build/lowest/bin/python || $(PYTHON) -m venv build/lowest
	build/lowest/bin/python -m pip install --quiet --disable-pip-version-check -e ".[dev]" -c constraints-lowest.txt
	@touch $@

test-lowest: export OMP_NUM_THREADS = 1
test-lowest: build/lowest/.installed
	build/lowest/bin/python -m pytest tests/objectives tests/training tests/recipe tests/targets tests/cli/test_app.py src/decoct/objectives

build/tools/.installed: Makefile
	test -x build/tools/bin/python || $(PYTHON) -m venv build/tools
	build/tools/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.9 cyclonedx-bom==7.5.0
	@touch $@

lock: build/tools/.installed
	build/tools/bin/uv lock --default-index https://pypi.org/simple

lowest: build/tools/.installed
	@echo "# The lowest direct dependencies that pyproject.toml allows, with what goes with them on Linux and Python 3.11; make lowest writes it." > constraints-lowest.txt
	build/tools/bin/uv pip compile --quiet --resolution lowest-direct --python-version 3.11 --no-header --no-annotate --default-index https://pypi.org/simple --extra dev pyproject.toml >> constraints-lowest.txt

sbom: build/tools/.installed
	build/tools/bin/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --of JSON -o build/sbom.cdx.json constraints.txt

clean:
	rm -rf .venv site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
