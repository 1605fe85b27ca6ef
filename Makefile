# make demo   set up, and run the whole pipeline on generated videos
# make test   set up, and run every check: format, lint, types, import contracts, tests
#
# The virtual environment is made on first use and reused afterwards; VENV=path chooses another.

VENV ?= .venv
PYTHON ?= python3
BIN := $(abspath $(VENV))/bin
# One thread per process: Ray runs as many processes as there are CPUs.
RUN := OMP_NUM_THREADS=1 $(BIN)/python

.PHONY: demo test check benchmark clean

demo: $(VENV)/.installed
	$(RUN) -m jobs.run --config jobs/recipes/demo.yaml

test: $(VENV)/.installed-dev check
	$(RUN) -m pytest

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

benchmark: $(VENV)/.installed-dev
	$(RUN) -m benchmarks.labels

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) workspace build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
