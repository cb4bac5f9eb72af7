# make demo: the whole night on the sandbox.  make test: everything that must hold.  make dev: the UI.
# Nothing is needed but Python 3.11 or later (with venv), make and the package registry.

PYTHON ?= python3
BIN := .venv/bin
# Many tests wait for daemons and servers: half as many again as there are cores.
TEST_WORKERS ?= $(shell $(PYTHON) -c 'import os; print(max(2, (os.cpu_count() or 2) * 3 // 2))')

.PHONY: help setup demo test chaos defences dev lint types lock benchmark clean

help:
	@grep -E '^# make|^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^# //; s/:.*## /: /'

setup: .venv/.installed ## .venv with everything that requirements.lock names

.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; name it: make setup PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(BIN)/python -m pipeline.tables.native
	@touch $@

demo: setup ## one night on the sandbox: schedule, kick-off, sensor, ingest, tables
	$(BIN)/fhir-export demo

dev: setup ## the Dagster UI on http://127.0.0.1:3000 with the sandbox behind it; Ctrl-C ends both
	$(BIN)/fhir-export demo --ui

tests/azurite/node_modules/.installed: tests/azurite/package-lock.json .venv/.installed
	cd tests/azurite && PATH="$(CURDIR)/$(BIN):$$PATH" npm ci --ignore-scripts --no-progress --loglevel=error
	@touch $@

test: setup tests/azurite/node_modules/.installed lint types ## lint, types, all tests
	$(BIN)/python -m pytest -n $(TEST_WORKERS)

SEEDS ?= 20
SEED_FROM ?= 0
CHAOS_JOBS ?= 2
RESULTS ?= chaos-results.jsonl

chaos: setup tests/azurite/node_modules/.installed ## seeded faults and kills: make chaos SEEDS=200 SEED_FROM=0; results are appended to RESULTS
	PYTHONPATH=tests:tests/integration $(BIN)/python -m chaos --seeds $(SEEDS) --from $(SEED_FROM) --jobs $(CHAOS_JOBS) --results $(RESULTS)

defences: setup tests/azurite/node_modules/.installed ## takes each defence out of a copy and sees that a test notices; an hour
	$(BIN)/python scripts/remove_defences.py --jobs 2

benchmark: setup tests/azurite/node_modules/.installed ## NDJSON to Parquet against DuckDB, pyarrow and orjson; memory and cost as files grow; uploads to Azure
	$(BIN)/python -m benchmarks.conversion
	$(BIN)/python -m benchmarks.conversion --growth
	$(BIN)/python benchmarks/ingest_memory.py --gigabytes 1
	$(BIN)/python benchmarks/azure_upload.py
	$(BIN)/python benchmarks/many_files.py
	$(BIN)/python -m benchmarks.current_tables

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

lock: ## write requirements.lock anew from pyproject.toml (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-strip-extras \
	  --no-emit-index-url --no-emit-find-links --no-header --extra dev pyproject.toml -o requirements.lock

clean: ## remove what setup, demo and tests have made
	rm -rf .venv tests/azurite/node_modules lake .mypy_cache .ruff_cache .hypothesis
	git clean -fdX dagster_home
