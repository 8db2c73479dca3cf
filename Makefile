# Two commands: `make serve` and `make test`. Python 3.11, make and a C compiler are all they need.

PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
ENGINE ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo cuda || echo cpu)

MODEL ?=
HOST  ?= 127.0.0.1
PORT  ?= 8000
ARGS  ?=

# Processes that run tests; each engine that they start computes on one core. JOBS=1: one after the other.
JOBS   ?= 2
SPREAD := $(if $(filter-out 1,$(JOBS)),-n $(JOBS) --dist loadfile --no-loadscope-reorder)

# What the engine's room may grow to; what does not fit belongs into another room.
ENGINE_LINES := 2200

.DEFAULT_GOAL := help
.PHONY: help serve quick test test-all check bench bench-policies bench-kernels eval claims kvpress loadtest pages dashboards model clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# A stamp per set-up, renewed when pyproject.toml changes: a second start installs nothing.
$(VENV)/.$(ENGINE): pyproject.toml deploy/set-up.sh
	PYTHON=$(PYTHON) sh deploy/set-up.sh $(VENV) $(ENGINE)
	@touch $@

$(VENV)/.$(ENGINE)-dev: pyproject.toml deploy/set-up.sh
	PYTHON=$(PYTHON) sh deploy/set-up.sh $(VENV) $(ENGINE),dev
	@touch $(VENV)/.$(ENGINE) $@

# kvpress needs an older transformers than vLLM does: an environment of its own.
$(VENV)-kvpress/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)-kvpress
	$(VENV)-kvpress/bin/python -m pip install --disable-pip-version-check --editable ".[kvpress]"
	@touch $@

serve: $(VENV)/.$(ENGINE) ## serve a small real model, fetched once, or MODEL=..., on HOST:PORT; ARGS="..." goes to vllm serve
	$(BIN)/kvserve serve $(MODEL) --host $(HOST) --port $(PORT) $(ARGS)

check: $(VENV)/.$(ENGINE)-dev ## formatting, lint and types; prints how many lines each room of kvserve has
	@for room in kvserve/*/; do printf '%6d lines in %s\n' $$(find $$room -name '*.py' -exec cat {} + | wc -l) $$room; done
	@test $$(cat kvserve/engine/*.py | wc -l) -le $(ENGINE_LINES) || { echo "kvserve/engine has more than $(ENGINE_LINES) lines"; exit 1; }
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

quick: $(VENV)/.$(ENGINE)-dev ## the tests that need no engine and no server, in less than a minute
	$(BIN)/python -m pytest --quick -m "not slow" $(SPREAD)

test: check ## check, and all tests but the slow ones
	$(BIN)/python -m pytest -m "not slow" $(SPREAD)

test-all: check ## all tests
	$(BIN)/python -m pytest $(SPREAD)

bench: $(VENV)/.$(ENGINE)-dev ## speed against stock vLLM: prints a table, writes results/bench.json
	$(BIN)/python -m bench

bench-policies: $(VENV)/.$(ENGINE)-dev ## every policy's rounds and tokens/s: prints two tables, writes results/policies.json and gathering.json
	$(BIN)/python -m bench --parts e --out results/policies.json
	$(BIN)/python -m bench --parts f --out results/gathering.json

bench-kernels: $(VENV)/.$(ENGINE)-dev ## the Triton kernels on one GPU, in less than four minutes: prints tables, writes results/kernels.*
	$(BIN)/python -m bench.kernels

eval: $(VENV)/.$(ENGINE)-dev ## quality of some policies on a small real model, in a quarter of an hour: prints tables, writes results/sample.*
	$(BIN)/kvserve eval --short --out results/sample.json

claims: $(VENV)/.$(ENGINE)-dev ## what the papers claim, tested small, in under an hour on a busy machine: prints a table, writes results/claims.*
	$(BIN)/python -m evals.claims

kvpress: $(VENV)/.$(ENGINE)-dev $(VENV)-kvpress/.ready ## side by side with NVIDIA kvpress, in half an hour: prints tables, writes results/kvpress.*
	$(BIN)/python -m evals.beside

loadtest: $(VENV)/.$(ENGINE)-dev ## the server under load, in ten minutes: prints a table, writes results/loadtest.* and plots
	$(BIN)/python -m loadtests

pages: $(VENV)/.$(ENGINE)-dev ## refresh what is generated in docs/policies and docs/models.md, from classes and results/{quality,policies,gathering}.json
	$(BIN)/python -m handbook

dashboards: $(VENV)/.$(ENGINE)-dev ## write the generated Grafana dashboards and alert rules
	$(BIN)/python -m deploy.dashboards

model: $(VENV)/.$(ENGINE)-dev ## train the embedded model and its family from scratch (an hour or two on one core; resumable)
	$(BIN)/python -m models.training.train mini
	$(BIN)/python -m models.training.train micro
	$(BIN)/python -m models.training.train biased

clean: ## remove the virtual environments
	rm -rf $(VENV) $(VENV)-kvpress
