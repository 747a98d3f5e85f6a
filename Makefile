# Everything a developer does here. CI calls these targets and nothing else.

# The first of these that is 3.11 or later is used; name another with `make setup PYTHON=/path/to/python`.
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11 python3.14 python; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v "$$name"; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# arguments of `mqtt-gateway serve`, of pytest, of the bench and of the fault harness
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup run test check format services services-stop bench faults

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo '  make run ARGS="--config FILE"      arguments for `mqtt-gateway serve`'
	@echo '  make test ARGS="tests/mqtt -x"     arguments for pytest'

setup: $(STAMP) ## the environment in .venv, with the gateway and its tools

$(STAMP): pyproject.toml
	@if [ -z "$(PYTHON)" ]; then \
		echo 'No Python 3.11 or later found. Install one (Debian: apt-get install -y python3 python3-venv)' \
			'or name it: make setup PYTHON=/path/to/python3.11' >&2; exit 1; fi
	@if ! "$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo 'Installing python3-venv'; \
			apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends python3-venv; \
		else \
			echo 'This Python has no venv. Install it: sudo apt-get install -y python3-venv' >&2; exit 1; fi; fi
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@echo 'Installing the gateway and its tools into $(VENV)'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

run: setup ## the gateway on this machine, embedded; Ctrl-C ends it
	@$(BIN)/mqtt-gateway serve $(ARGS)

test: setup services ## every test, real servers included
	@$(BIN)/python -m pytest $(ARGS)

check: setup ## lint, format, types, and who may import whom
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/test_house.py

format: setup ## rewrite the sources as ruff wants them
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

services: ## a real Redis and RocketMQ on 127.0.0.1 (missing programs are installed, or named)
	@"$(or $(PYTHON),python3)" deploy/services.py start

services-stop: ## end just those
	@"$(or $(PYTHON),python3)" deploy/services.py stop

bench: setup ## measure, and write docs/benchmarks.md
	@$(BIN)/python -m tests.bench $(ARGS)

faults: setup ## kill and freeze every part under load, and account for every message
	@$(BIN)/python -m tests.faults.harness $(ARGS)
