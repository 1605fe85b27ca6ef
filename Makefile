# make demo   set up, and run the whole pipeline on generated videos
# make tune   set up, and tune the loss weights on generated videos; make search is its former name
# make test   set up, and run every check: format, lint, types, import contracts, tests
# make test-tune      tunings that take minutes; make test-search is its former name
# make test-cluster   the tests that start Ray clusters, of several nodes too
# make test-faults   the long rows of docs/faults.md, and many times as many random inputs
# make bench          ours against honest baselines, on this machine: benchmarks/RESULTS.md
# make bench-gpu      the models alone on a CUDA GPU, against its limits
#
# The virtual environment is made on first use and reused afterwards; VENV=path chooses another.

VENV ?= .venv
PYTHON ?= python3
BIN := $(abspath $(VENV))/bin
# One thread per process: Ray runs as many processes as there are CPUs.
RUN := OMP_NUM_THREADS=1 $(BIN)/python

.PHONY: demo tune search test test-tune test-search test-cluster test-faults check bench bench-gpu clean

demo: $(VENV)/.installed
	$(RUN) -m jobs.run --config jobs/recipes/demo.yaml

tune: $(VENV)/.installed
	$(RUN) -m jobs.tune --config jobs/recipes/demo.yaml --tune jobs/recipes/tune_kl_skl.yaml

search:
	@echo "make search is make tune now" >&2
	@$(MAKE) --no-print-directory tune

test: $(VENV)/.installed-dev check
	$(RUN) -m pytest -n logical --maxprocesses 4 --dist loadfile -m 'not cluster and not slow_fault and not tune'

test-faults: $(VENV)/.installed-dev
	$(RUN) -m pytest -n 2 --dist loadfile -m slow_fault
	HBI_FUZZ_FACTOR=20 $(RUN) -m pytest --timeout 1200 tests/faults/test_fuzz_annotations.py tests/faults/test_fuzz_files.py

test-tune: $(VENV)/.installed-dev
	$(RUN) -m pytest -m tune tests/jobs

test-search:
	@echo "make test-search is make test-tune now" >&2
	@$(MAKE) --no-print-directory test-tune

test-cluster: $(VENV)/.installed-dev
	$(RUN) -m pytest -m cluster tests/cluster

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

bench: $(VENV)/.installed-dev
	$(RUN) -m benchmarks.bench

bench-gpu: $(VENV)/.installed
	$(BIN)/python -m benchmarks.gpu

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
