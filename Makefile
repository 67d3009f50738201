# Every target works from a fresh checkout: it makes the environment and the extension first, when needed.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
# What packages build with make of their own is not to inherit this one's flags.
unexport MAKEFLAGS

PYTHON ?= python3
VENV ?= .venv
# Most of what takes long waits: five at a time keep two processors busy.
JOBS ?= 5
PYTEST_ARGS ?=
DEMO_ARGS ?=
SEEDS ?= 20000
BENCH_ARGS ?=
OLD ?= .benchmarks/previous.json
NEW ?= .benchmarks/last.json
PEERS_ARGS ?=
KAFKA_ARGS ?=
MINUTES ?= 30
SEED ?=
CHAOS_ARGS ?=

PY := $(VENV)/bin/python
READY := $(VENV)/.ready
EXTENSION := $(VENV)/.extension
PEERS_VENV := .venv-peers
CYTHON := $(wildcard eventproc/*.pyx eventproc/*.pxd eventproc/*/*.pyx eventproc/*/*.pxd)
# Python that is compiled, with the types of the .pxd beside it.
COMPILED := $(filter $(CYTHON:.pxd=.py),$(wildcard eventproc/*.py eventproc/*/*.py))
SHELL_SCRIPTS := .ci/run scripts/need

.PHONY: help
help: ## this list
	@echo "usage: make TARGET"
	@sed -nE 's/^([a-z-]+):.*## (.*)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 18
	@echo "variables: PYTHON=$(PYTHON) (3.11 or newer), JOBS=$(JOBS) (test processes; 0: one after the other),"
	@echo "           PYTEST_ARGS, DEMO_ARGS, BENCH_ARGS, PEERS_ARGS, KAFKA_ARGS, CHAOS_ARGS (passed on)"

# --- environment --------------------------------------------------------------------------------

# pip 25.1 is the first that knows dependency groups.
$(READY): pyproject.toml setup.py
	PYTHON=$(PYTHON) scripts/need build
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --upgrade 'pip>=25.1'
	$(PY) -m pip install --quiet --no-compile --group dev
	rm -f eventproc/*.c eventproc/*/*.c eventproc/*.so eventproc/*/*.so
	PYTHONWARNINGS=ignore $(PY) -m pip install --quiet --no-build-isolation --editable .
	@touch $@

# What is older than the environment was built with it.
$(EXTENSION): $(READY) $(CYTHON) $(COMPILED)
	@if [ -n "$$(find $(CYTHON) $(COMPILED) -newer $(READY))" ]; then $(PY) setup.py --quiet build_ext --inplace; fi
	@touch $@

.PHONY: setup
setup: $(EXTENSION) ## environment and extension only

# --- the main job -------------------------------------------------------------------------------

.PHONY: demo
demo: $(EXTENSION) ## 50,000 events through 8 workers on an embedded broker and Redis, then the audit
	@$(VENV)/bin/eventproc demo $(DEMO_ARGS)

.PHONY: test
test: $(EXTENSION) ## everything, on its own servers (real Kafka too, with Java 17 and Maven)
	@scripts/need redis kafka
	@if command -v java >/dev/null && command -v mvn >/dev/null; then \
	  $(PY) -m tests.kafka_server fetch >/dev/null || echo "make: the tests will say what this means"; \
	fi
	$(PY) -m pytest -n $(JOBS) --dist loadgroup --max-worker-restart=0 $(PYTEST_ARGS)

.PHONY: simulate
simulate: $(EXTENSION) ## play SEEDS simulated histories, and tell which of them break a rule
	$(PY) -m tests.simulation.run $(SEEDS)

.PHONY: mutants
mutants: $(EXTENSION) ## let every killer loose on every planted bug
	$(PY) -m tests.mutants.matrix

.PHONY: bench
bench: $(EXTENSION) ## benchmarks; results as JSON in .benchmarks/last.json, those before in previous.json
	@mkdir -p .benchmarks
	@if [ -e .benchmarks/last.json ]; then mv .benchmarks/last.json .benchmarks/previous.json; fi
	$(PY) -m pytest benchmarks --benchmark-json=.benchmarks/last.json $(BENCH_ARGS)

.PHONY: bench-compare
bench-compare: $(EXTENSION) ## figures of the run OLD=.benchmarks/previous.json beside those of NEW=….json
	@$(PY) -m benchmarks.compare $(OLD) $(NEW)

# The peers' packages ask for a confluent-kafka of their own: they get an environment of their own.
$(PEERS_VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(PEERS_VENV)
	$(PEERS_VENV)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(PEERS_VENV)/bin/python -m pip install --quiet --group peers
	@touch $@

.PHONY: peers
peers: $(EXTENSION) $(PEERS_VENV)/.ready ## eventproc beside its peers on a real Kafka: tables, and charts into docs/
	@CI=true scripts/need redis kafka
	$(PY) -m benchmarks.peers.compare --results .benchmarks/peers.json $(PEERS_ARGS)
	$(PEERS_VENV)/bin/python -m benchmarks.peers.charts .benchmarks/peers.json docs

.PHONY: chaos
chaos: $(EXTENSION) ## all faults mixed over a load for MINUTES=30 from SEED=…, then the audit; report in .chaos/
	@CI=true scripts/need redis kafka
	@$(PY) -m tests.faults.chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(CHAOS_ARGS)

.PHONY: lint
lint: $(EXTENSION) ## ruff, mypy --strict, cython-lint, luacheck, shellcheck, layers
	@scripts/need lint
	@status=0; export PATH="$(abspath $(VENV))/bin:$$PATH"; \
	run() { echo "lint: $$*"; "$$@" || status=1; }; \
	run $(PY) -m ruff check .; \
	run $(PY) -m ruff format --check .; \
	run $(PY) -m mypy; \
	run $(VENV)/bin/cython-lint $(CYTHON); \
	run luacheck --quiet eventproc/store/lua; \
	run shellcheck $(SHELL_SCRIPTS); \
	run $(PY) -m pytest -q tests/unit/test_layers.py; \
	exit $$status

.PHONY: format
format: $(EXTENSION) ## let ruff rewrite what lint complains about
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

.PHONY: kafka
kafka: $(EXTENSION) ## fetch (once) and run a single-node Apache Kafka; Ctrl-C stops it
	@CI=true scripts/need kafka
	@$(PY) -m tests.kafka_server start $(KAFKA_ARGS)

.PHONY: docs
docs: $(EXTENSION) ## write the settings table into README.md
	$(PY) -m scripts.settings_table README.md

.PHONY: wheel
wheel: $(EXTENSION) ## sdist and wheel in dist/
	@rm -rf build dist
	$(PY) -m build --no-isolation

.PHONY: clean
clean: ## remove everything that was built, except the environment
	rm -rf build dist *.egg-info .benchmarks .chaos .hypothesis .pytest_cache .mypy_cache .ruff_cache
	rm -f eventproc/*.c eventproc/*/*.c eventproc/*.so eventproc/*/*.so $(EXTENSION) $(READY)
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
