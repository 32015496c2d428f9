# Two commands on a fresh machine with python3 and make: `make demo` and `make test`.
# Options go through ARGS: make demo ARGS="--once", make test ARGS="tests/unit -k record".

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
# Processes for tests, each with its own Kafka and Redis; they wait more than they compute.
JOBS ?= 4
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist worksteal
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --editable

.DEFAULT_GOAL := help
.PHONY: help venv setup demo test simulate test-kafka faults bench bench-peers lint audit java clean

help:
	@echo "make demo        install, start Kafka and Redis, run the reference app on sample data"
	@echo "make test        run all tests on the embedded Kafka"
	@echo "make simulate    let simulated workers, broker and disks fail, thousands of times"
	@echo "make test-kafka  run the tests with servers on Apache Kafka (Java, Maven)"
	@echo "make faults      break brokers, Redis, networks and workers at random, on Apache Kafka"
	@echo "make bench       measure side by side with Faust and a loop by hand"
	@echo "make bench-peers install Bytewax and Quix Streams, which bench then measures too"
	@echo "make lint        ruff and mypy"
	@echo "make audit       look for known vulnerabilities in what is installed (needs pypi.org)"
	@echo "make setup       only install, for development"
	@echo "make clean       remove what these made"

venv: $(BIN)/python
setup: $(VENV)/.installed-test

demo: $(VENV)/.installed-demo
	@$(BIN)/streamproc dev $(ARGS)

test: $(VENV)/.installed-test
	$(PYTEST) $(ARGS)

simulate: $(VENV)/.installed-test
	$(BIN)/python -m tests.simulation $(or $(ARGS),--seeds 2000)
	$(BIN)/python -m tests.simulation --crashes $(or $(ARGS),--seeds 2)

test-kafka: $(VENV)/.installed-test java
	STREAMPROC_TEST_KAFKA=apache $(PYTEST) $(wildcard tests/faults tests/integration) $(ARGS)

# The long form of tests/faults/test_guarantees.py: make faults ARGS="--rounds 20 --minutes 60"
faults: $(VENV)/.installed-test java
	PYTHONPATH=tests $(BIN)/python -m faults $(ARGS)

bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks $(ARGS)

# Apart from the rest: the peers ask for other versions of the same packages.
bench-peers: $(BIN)/python
	$(BIN)/python -m venv benchmarks/.peers
	benchmarks/.peers/bin/python -m pip install --quiet --disable-pip-version-check \
	  --editable '.[bench-peers]'

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Apart from the rest, as bench-peers. Strict: a package that could not be looked up is no pass.
audit: $(VENV)/.installed-demo
	$(BIN)/python -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(BIN)/python -m pip list --format freeze --exclude-editable > $(VENV)/installed.txt
	$(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement $(VENV)/installed.txt

clean:
	rm -rf $(VENV) .streamproc .pytest_cache .mypy_cache .ruff_cache .hypothesis benchmarks/.peers

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "$(PYTHON) is missing: install Python 3.10 to 3.13, or run make PYTHON=/path/to/python"; \
	  exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || { \
	  echo "$(PYTHON) is $$($(PYTHON) --version 2>&1); Python 3.10 to 3.13 is needed."; \
	  echo "Name another one: make PYTHON=python3.12 ..."; \
	  exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) has no venv module. Debian, Ubuntu: apt-get install python3-venv"; \
	  exit 1; }
	$(PYTHON) -m venv $(VENV)

# One stamp for each set of extras: made once, and again when pyproject.toml changes.
$(VENV)/.installed-demo: EXTRAS := fast
$(VENV)/.installed-test: EXTRAS := fast,pandas,test,lint,bench
$(VENV)/.installed-bench: EXTRAS := fast,bench

# Where no wheel of an embedded server fits, the rest is installed and `streamproc dev` says
# which server to install or which URL to set.
$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	$(INSTALL) '.[dev-servers,$(EXTRAS)]' || $(INSTALL) '.[$(EXTRAS)]'
	@touch $@

java:
	@if ! command -v java >/dev/null || ! command -v mvn >/dev/null; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y openjdk-17-jre-headless maven; \
	  else \
	    echo "Apache Kafka needs java (17 or newer) and mvn on PATH."; \
	    echo "Debian, Ubuntu: sudo apt-get install openjdk-17-jre-headless maven"; \
	    echo "macOS: brew install openjdk maven"; \
	    exit 1; \
	  fi; \
	fi
