# The one door: needs python3 (3.11 or newer) and make; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
JOBS ?= 2
PIP_FLAGS ?=
# One thread in each of the parallel test processes: faster, and the same on every machine.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help env demo examples data-folder test test-real bench lint types contract check clean

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile
	@echo "  PYTHON=python3.12 chooses the interpreter; PIP_FLAGS=... is passed to pip install."

env: $(STAMP) ## make .venv with the tested versions (done once)

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "'$(PYTHON)' not found: install Python 3.11 or newer, or run make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Intact needs Python 3.11 or newer; $(PYTHON) is %d.%d. Choose another with make PYTHON=python3.12" % sys.version_info[:2])'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments: install its venv package (Debian, Ubuntu: python3-venv)"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) -c constraints.txt -e '.[dev,demo]'
	@touch $@

demo: $(STAMP) ## quantize a small network and print the report
	$(BIN)/intact demo --out build/demo

examples: data-folder $(STAMP) ## every example in full; needs INTACT_DATA=folder (examples/README.md)
	@set -e; for name in vgg16_step_by_step nin_cifar10 resnet18_three_stages resnet20_low_bit; do \
	  echo "== $$name"; $(BIN)/python examples/$$name.py --data "$(INTACT_DATA)"; done

data-folder:
	@test -d "$(INTACT_DATA)" || { echo "No data: make examples INTACT_DATA=folder runs every example in full (see examples/README.md); python examples/NAME.py --small needs none."; exit 1; }

test: $(STAMP) ## the fast suite: every example in the docstrings, then the tests
	$(PYTEST) -n $(JOBS) --doctest-modules src/intact
	$(PYTEST) -n $(JOBS) -m "not real and not slow"

test-real: $(STAMP) ## the slow suite: real networks and data
	$(PYTEST) -m "real or slow"

bench: $(STAMP) ## run every benchmark; each prints JSON
	@set -e; for file in benchmarks/bench_*.py; do $(BIN)/python $$file; done

lint: $(STAMP) ## ruff
	$(BIN)/ruff check .

types: $(STAMP) ## mypy, strict
	$(BIN)/mypy

contract: $(STAMP) ## the order of the layers
	$(BIN)/lint-imports

check: lint types contract test ## everything that CI runs

clean: ## remove .venv, caches and builds
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -prune -exec rm -rf {} +
