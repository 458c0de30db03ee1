# Two commands do everything on a fresh machine with Python >= 3.11:
#   make demo    sets up and runs the main job on the embedded simulated twins
#   make test    sets up and passes the tests (lint, format, types, layers, contracts)

PYTHON ?= python3
VENV ?= .venv
OUT ?= neurobench-results
BIN := $(VENV)/bin

.PHONY: demo test slow campaign slurm lint bench fuzz suites nulls docs schema wheel clean

demo: $(VENV)/.installed
	$(BIN)/neurobench run --backbone mamba --mask roi --out $(OUT)

# As many processes as cores, each with one thread: more would only wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

test: lint
	$(PYTEST)

slow: $(VENV)/.installed-test
	$(PYTEST) -m "slow and not campaign and not gpu and not network and not slurm"

# More of what slow tests show once: every suite whole, other seeds, the longest pages and runs of the documentation.
campaign: $(VENV)/.installed-test
	$(PYTEST) -m "campaign and not gpu and not network"

slurm: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slurm

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Ratios against peers, measured side by side; figures depend on the machine.
bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks.performance

# A hundred thousand damaged files for every reader of what comes from outside.
fuzz: $(VENV)/.installed-test
	$(BIN)/python -m benchmarks.fuzz --save
	$(BIN)/python -m benchmarks.fuzz --save --engine hypothesis

# Every seed system's suite on its twin, whole; docs/suites.md holds what came of it.
suites: $(VENV)/.installed
	$(BIN)/python -m benchmarks.suites --save

# A thousand repeats in which there is nothing to find: docs/statistics.md holds what came of it.
nulls: $(VENV)/.installed
	$(BIN)/python -m benchmarks.nulls

# The documentation, as pages in docs/_build.
docs: $(VENV)/.installed-test
	$(BIN)/python -m sphinx -q -W docs docs/_build

# The JSON Schema that ships with the package, from the model that validates records.
schema: $(VENV)/.installed
	$(BIN)/python -c "import json; from neurobench.results import schema; print(json.dumps(schema(), indent=1, sort_keys=True))" > neurobench/record.schema.json

# The main job from the built wheel, in an environment of its own.
wheel: $(VENV)/.installed-test
	rm -rf dist && $(BIN)/python -m build --wheel
	$(PYTHON) -m venv $(VENV)-wheel && $(VENV)-wheel/bin/pip install --quiet dist/*.whl
	cd / && $(abspath $(VENV))-wheel/bin/neurobench run --backbone mamba --mask roi --out $(abspath $(OUT))-wheel

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "neurobench needs Python >= 3.11, and $(PYTHON) is " + sys.version.split()[0] + "; say which to use: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -e .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install --quiet -e ".[test,docs]"
	touch $@

$(VENV)/.installed-bench: $(VENV)/.installed
	$(BIN)/pip install --quiet -e ".[bench]"
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-wheel dist build .pytest_cache .mypy_cache .ruff_cache
