# make demo   set up, and run the whole pipeline on generated videos
# make tune   set up, and tune the loss weights on generated videos; make search is its former name
# make demo-frozen, make tune-frozen   the same on stored features of a frozen encoder, which is trained first
# make test   set up, and run every check: format, lint, types, import contracts, tests
# make test-fast      what starts no Ray and takes less than half a second: after each edit
# make test-tune      tunings that take minutes; make test-search is its former name
# make test-long      what takes long and is shown in part by shorter tests: large encoders, benchmarks at toy sizes
# make test-cluster   the tests that start Ray clusters, of several nodes too
# make test-faults    the long rows of docs/faults.md, and many times as many random inputs; SLICE=name runs a part
# make docs           the documentation site, in docs/_build
# make bench          ours against honest baselines, on this machine: benchmarks/RESULTS.md
# make bench-gpu      the models alone on a CUDA GPU, against its limits
# make test-pythons   set-up, the tests that start no Ray and a tiny demo on every Python that the project promises and that is found here
# make test-latest    the tests that start no Ray with the newest release of every dependency
# make update-dependencies   write constraints.txt, the tested set that the targets above install, anew
#
# The virtual environment is made on first use and reused afterwards; VENV=path chooses another, PYTHON=python3.12
# another interpreter.

VENV ?= .venv
PYTHON ?= python3
# What pyproject.toml promises, the oldest first; test-pythons leaves out what is not found.
PYTHONS ?= python3.11 python3.12 python3.13
PIP_OPTIONS ?= --constraint constraints.txt
BIN := $(abspath $(VENV))/bin
# Compiled modules are kept, also where the environment says otherwise: compiling takes a third of a short test run.
unexport PYTHONDONTWRITEBYTECODE
# One thread per process: Ray runs as many processes as there are CPUs.
RUN := OMP_NUM_THREADS=1 $(BIN)/python

# Two processes on two cores; on more, no more than four: tests of Ray start several processes each.
PYTEST := $(RUN) -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
# The slices of the long suites, each of which can run alone: make test-faults SLICE=storage.
faults_killed := tests/faults/test_killed_runs.py
faults_evaluations := tests/faults/test_killed_evaluations.py
faults_trainings := --dist load -k 'driver and not [video_qa]' tests/faults/test_killed_trainings.py
faults_questions := -k '[video_qa]' tests/faults/test_killed_trainings.py
faults_worker := -k 'not driver' tests/faults/test_killed_trainings.py tests/faults/test_killed_in_place.py
faults_nodes := -k frames tests/faults/test_lost_nodes.py
faults_training_nodes := -k 'not frames' tests/faults/test_lost_nodes.py
faults_disks := --dist load -k disk tests/faults/test_whole_runs.py
faults_storage := --dist load -k 'not disk' tests/faults/test_whole_runs.py tests/faults/test_damaged_files.py
faults_processes := tests/faults/test_processes.py tests/faults/test_ray_neighbours.py
faults_errors := tests/pipelines/train/test_worker_errors.py tests/pipelines/train/test_unlisted.py tests/pipelines/tune/test_inputs.py
faults_mlflow := --dist load tests/faults/test_mlflow_outage.py
FAULTS := killed evaluations trainings questions worker errors nodes training_nodes disks storage processes mlflow fuzz
cluster_jobs := -k 'not stopped' tests/cluster/test_jobs_api.py
cluster_stopped := -k stopped tests/cluster/test_jobs_api.py
cluster_nodes := -k '[2]' tests/cluster/test_nodes.py
cluster_three_nodes := -k '[3]' tests/cluster/test_nodes.py
cluster_unseen := -k 'not [2] and not [3]' tests/cluster/test_nodes.py
cluster_store := tests/cluster/test_object_store.py
CLUSTER := jobs stopped nodes three_nodes unseen store
# Words in the names of the tests.
TUNINGS := best_recipe killed population stages two_workers
TINY_DEMO := --data.shapes.train_videos 48 --data.shapes.test_videos 16 --data.validation_videos 8 \
  --estimator.epochs 1 --retrieval.epochs 1 --video_qa.epochs 1 \
  --estimator.batch_size 8 --retrieval.batch_size 8 --video_qa.batch_size 8

.PHONY: demo tune demo-frozen tune-frozen search test test-tune test-long test-search test-cluster test-faults test-fast test-no-ray test-pythons test-python \
  test-latest update-dependencies check docs bench bench-gpu clean

demo: $(VENV)/.installed-serve
	$(RUN) -m jobs.run --config jobs/recipes/demo.yaml

tune: $(VENV)/.installed-tune
	$(RUN) -m jobs.tune --config jobs/recipes/demo.yaml --tune jobs/recipes/tune_kl_skl.yaml

# On generated videos without game and distillation: jobs/recipes/demo_frozen.yaml says why.
ENCODER := workspace/demo_frozen/encoder.safetensors
$(ENCODER):
	$(RUN) -m jobs.run --config jobs/recipes/demo_frozen.yaml --model.clip.train all --model.clip.pretrained null \
	  --model.game.teacher none --model.loss.kl 0 --until_stage retrieval
	cp workspace/demo_frozen/retrieval/*/model/model.safetensors $@

demo-frozen: $(VENV)/.installed-serve $(ENCODER)
	$(RUN) -m jobs.run --config jobs/recipes/demo_frozen.yaml

tune-frozen: $(VENV)/.installed-tune $(ENCODER)
	$(RUN) -m jobs.tune --config jobs/recipes/demo_frozen.yaml --tune jobs/recipes/tune_kl_skl_frozen.yaml

search:
	@echo "make search is make tune now" >&2
	@$(MAKE) --no-print-directory tune

test: $(VENV)/.installed-dev check
	$(PYTEST) -m 'not cluster and not slow_fault and not tune and not long'

NO_RAY := not ray and not fault and not cluster and not tune and not long

test-fast: $(VENV)/.installed-dev
	$(PYTEST) -m '$(NO_RAY) and not slow'

test-no-ray: $(VENV)/.installed-dev
	$(PYTEST) -m '$(NO_RAY)'

test-faults: $(addprefix faults-,$(or $(SLICE),$(FAULTS)))

faults-fuzz: $(VENV)/.installed-dev
	HBI_FUZZ_FACTOR=40 $(RUN) -m pytest -n 2 --dist load --timeout 1200 \
	  tests/faults/test_fuzz_annotations.py tests/faults/test_fuzz_files.py \
	  tests/serve/test_api.py::test_no_request_that_the_schema_allows_is_a_server_error

faults-%: $(VENV)/.installed-dev
	$(if $(faults_$*),,$(error SLICE is $*; the slices of test-faults are: $(FAULTS)))
	$(RUN) -m pytest -n 2 --dist loadfile -m slow_fault $(faults_$*)

test-tune: $(addprefix tuning-,$(or $(SLICE),$(TUNINGS)))

tuning-%: $(VENV)/.installed-dev
	$(if $(filter $*,$(TUNINGS)),,$(error SLICE is $*; the slices of test-tune are: $(TUNINGS)))
	$(RUN) -m pytest -m tune -k $* tests/jobs/test_tune.py

test-long: $(VENV)/.installed-dev
	$(PYTEST) -m long

test-search:
	@echo "make test-search is make test-tune now" >&2
	@$(MAKE) --no-print-directory test-tune

test-cluster: $(addprefix cluster-,$(or $(SLICE),$(CLUSTER)))

cluster-%: $(VENV)/.installed-dev
	$(if $(cluster_$*),,$(error SLICE is $*; the slices of test-cluster are: $(CLUSTER)))
	$(RUN) -m pytest -m cluster $(cluster_$*)

# Each in an environment of its own, of several GB, below $(VENV).
test-pythons:
	@found=; for python in $(PYTHONS); do \
	  $$python --version >/dev/null 2>&1 || { echo "$$python: not found"; continue; }; \
	  version=$$($$python -c 'import platform; print(platform.python_version())'); found=yes; \
	  $(MAKE) --no-print-directory test-python PYTHON=$$python VENV=$(VENV)/$$version || exit 1; \
	done; test "$$found" || { echo "none of $(PYTHONS) is found" >&2; exit 1; }

test-python: $(VENV)/.installed-dev
	$(BIN)/python --version
	$(MAKE) --no-print-directory test-no-ray
	rm -rf $(VENV)/demo
	$(RUN) -m jobs.run --config jobs/recipes/demo.yaml $(TINY_DEMO) --workspace $(VENV)/demo
	rm -rf $(VENV)/demo

test-latest:
	rm -f $(VENV)/latest/.installed-dev
	$(MAKE) test-no-ray VENV=$(VENV)/latest PIP_OPTIONS='--upgrade --upgrade-strategy eager'

update-dependencies: $(VENV)/bin/uv
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --upgrade \
	  --no-header --no-annotate --no-emit-index-url --quiet --output-file constraints.txt

$(VENV)/bin/uv: | $(VENV)/bin/python
	$(BIN)/pip install --quiet uv

docs: $(VENV)/.installed-dev
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build

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
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null || { \
	  fitting=$$(for python in $(PYTHONS); do $$python --version >/dev/null 2>&1 && echo $$python; done | tail -n 1); \
	  given=$$($(PYTHON) --version 2>/dev/null || echo not found); \
	  hint=$${fitting:+ $$fitting is here: PYTHON=$$fitting make $(MAKECMDGOALS)}; \
	  echo "Python 3.11, 3.12 or 3.13 is needed; $(PYTHON) is $$given.$$hint" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet $(PIP_OPTIONS) --editable .
	touch $@

$(VENV)/.installed-%: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/pip install --quiet $(PIP_OPTIONS) --editable '.[$*]'
	touch $@ $(VENV)/.installed $(if $(filter dev,$*),$(VENV)/.installed-serve $(VENV)/.installed-tune)

clean:
	rm -rf $(VENV) workspace build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
