SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# Where this is set, each process that starts compiles all of torch anew: seconds of CPU, and tests
# start hundreds.
export PYTHONDONTWRITEBYTECODE :=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
KERNELS := $(VENV)/.kernels
TRITON := $(VENV)/.triton
RAY := $(VENV)/.ray
HELM := $(VENV)/.helm

# The first Python that is 3.11 or 3.12: the plain one if it fits.
PYTHON ?= $(shell for p in python3 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$p && break; done)

# cpu, or what `uv pip install --torch-backend` knows (auto, cu128, ...).
TORCH_BACKEND ?= $(if $(shell command -v nvidia-smi),auto,cpu)

.PHONY: help
help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:[^#]*##/\t/' | while IFS=$$'\t' read -r name text; do \
	  printf '  \033[1m%-12s\033[0m %s\n' "$$name" "$$text"; done

.PHONY: install
install: $(KERNELS) ## make .venv and install everything (TORCH_BACKEND=cpu|auto|cu128)

# uv does not read pip's config, so pip is asked where it finds wheels. Where such a folder holds a
# torch, that is the one this machine wants and no torch index is named.
$(STAMP): pyproject.toml
	@test -n "$(PYTHON)" || { echo "kvasir needs Python 3.11 or 3.12; name one with make PYTHON=..." >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) has no venv; on Debian and Ubuntu: apt install $$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')" >&2; exit 2; }
	@test -x $(BIN)/python || { echo "== making $(VENV) with $$($(PYTHON) --version)"; $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 2; }; }
	@uv=$$(command -v uv || true); \
	if [ -z "$$uv" ] || ! "$$uv" --version >/dev/null 2>&1; then \
	  echo "== installing uv into $(VENV)"; $(BIN)/python -m pip install --quiet uv; uv=$(BIN)/uv; fi; \
	links=$$(for python in $(BIN)/python $(PYTHON); do for key in :env:.find-links global.find-links; do \
	  $$python -m pip config get $$key 2>/dev/null && break 2; done; done | tr '\n' ' ' | sed 's/ *$$//' || true); \
	backend=(--torch-backend="$(TORCH_BACKEND)"); \
	if [ -n "$$links" ]; then export UV_FIND_LINKS="$${UV_FIND_LINKS:-$$links}"; fi; \
	for folder in $$links; do if compgen -G "$$folder/torch-*" >/dev/null; then backend=(); fi; done; \
	echo "== installing kvasir and what it needs into $(VENV) (about 1.5 GB, most of it torch)"; \
	"$$uv" pip install --python $(BIN)/python "$${backend[@]}" --editable '.[test]'
	@touch $@

# Only tests want it where there is no GPU. By itself, as torch's index for CPUs may not have it.
$(TRITON): $(STAMP)
	@uv=$$(command -v uv || echo $(BIN)/uv); "$$uv" pip install --python $(BIN)/python --editable '.[triton]'
	@touch $@

# Tests start a small Ray of their own; nobody else wants it on one machine.
$(RAY): $(STAMP)
	@uv=$$(command -v uv || echo $(BIN)/uv); "$$uv" pip install --python $(BIN)/python --editable '.[ray]'
	@touch $@

# Helm's own engine, for tests of the chart, wants Python 3.12: a venv of its own with it, 60 MB to
# fetch, and the schemas of Kubernetes and of the Prometheus operator beside.
PYTHON312 ?= $(firstword $(shell for p in python3.12 $$HOME/.pyenv/versions/3.12.*/bin/python3.12; do \
  $$p -c '' 2>/dev/null && echo $$p; done))
$(HELM): $(STAMP)
	@uv=$$(command -v uv || echo $(BIN)/uv); \
	"$$uv" venv --quiet --allow-existing --python "$(or $(PYTHON312),3.12)" $(VENV)/helm || { \
	  echo "tests of the chart need Python 3.12: install it, or name one with make PYTHON312=..." >&2; exit 2; }; \
	"$$uv" pip install --python $(VENV)/helm/bin/python 'helm-sdkpy>=0.1.32,<0.2' 'kubernetes-validate>=1.37,<2'; \
	"$$uv" pip install --python $(VENV)/helm/bin/python --no-deps 'cloudcoil-models-prometheus-operator>=0.80.1,<0.81'
	@touch $@

$(KERNELS): $(STAMP) $(wildcard workers/kernels/cpu/* workers/kernels/build.py workers/kernels/library.py)
	@echo "== compiling kernels for this CPU"
	@$(BIN)/python -m workers.kernels.build
	@touch $@

.PHONY: serve
serve: install ## start the whole cluster on this machine with the example config
	@exec $(BIN)/kvasir serve

.PHONY: chat
chat: install ## talk to a running cluster
	@exec $(BIN)/kvasir chat

# These keep one core busy and nothing else, so two may run at once; what starts workers and has
# deadlines runs one by one beside them, and has the larger share of the machine.
WORKERS_ALONE := aggregated_processes channel groups handoff_pages internal_tls links other_hosts processes rank_ports \
  ranks resharding sampled_processes server team
CLUSTER_ALONE := autoscaler interference local_pools planner_live ray_health ray_ranks supervisor
SIDE_BY_SIDE := tests/arch tests/core tests/sim tests/chaos tests/router tests/demo tests/helm \
  $(addprefix tests/k8s/test_,applier.py lease.py container_parts.py) \
  $(addprefix tests/telemetry/test_,bounds.py traces.py logs.py rules.py) \
  $(filter-out $(CLUSTER_ALONE:%=tests/cluster/test_%.py),$(wildcard tests/cluster/test_*.py)) \
  $(filter-out $(WORKERS_ALONE:%=tests/workers/test_%.py),$(wildcard tests/workers/test_*.py))
define run_tests
	@echo "== testing, in two runs beside each other: each is shown when it is over"
	@$(MAKE) -j2 --keep-going --output-sync=target --no-print-directory tests-beside tests-one-by-one MARKS='$(1)'
endef

.PHONY: test
test: install check $(TRITON) $(RAY) $(HELM) ## what CI runs: checks and every test that is not marked slow
	$(call run_tests,-m "not slow")

.PHONY: test-all
test-all: install check $(TRITON) $(RAY) $(HELM) ## the long matrices too
	$(call run_tests,)

.PHONY: tests-beside
tests-beside:
	@OMP_NUM_THREADS=1 exec nice -n 3 $(BIN)/python -m pytest $(MARKS) -q -n 2 --dist worksteal --durations=15 $(SIDE_BY_SIDE)

.PHONY: tests-one-by-one
tests-one-by-one:
	@OMP_NUM_THREADS=1 exec $(BIN)/python -m pytest $(MARKS) -q --durations=30 $(SIDE_BY_SIDE:%=--ignore=%)

.PHONY: test-gpu
test-gpu: install ## what one GPU can show: kernels, graphs, sampling, transfers with their GB/s
	$(BIN)/python -m pytest -q -rs tests/workers/gpu

.PHONY: check
check: install ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: format
format: install ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

PROTOS := common inference worker admin router

.PHONY: proto
proto: install ## regenerate the gRPC stubs in workers/wire
	$(BIN)/python -m grpc_tools.protoc -Iworkers/wire=proto/kvasir/v1 --python_out=. --pyi_out=. --grpc_python_out=. \
	  $(PROTOS:%=workers/wire/%.proto)

.PHONY: helm
helm: install ## regenerate the schema of the chart's values
	PYTHONPATH=. $(BIN)/python helm/make_schema.py

.PHONY: chaos
chaos: install ## 10,000 runs with faults in virtual time (SEED=n plays one again; RUNS, JOBS)
	$(BIN)/python -m tests.chaos $(if $(SEED),--seed $(SEED),--runs $(or $(RUNS),10000) $(if $(JOBS),--jobs $(JOBS)))

.PHONY: chaos-live
chaos-live: install ## real processes under load, killed, frozen, drained (FAULTS, MINUTES)
	$(BIN)/python -m load_tests.chaos_live --faults $(or $(FAULTS),300) --minutes $(or $(MINUTES),12)

.PHONY: demo-train
demo-train: install ## train the demo model again (about an hour on 2 cores)
	$(BIN)/python -m workers.demo.train

.PHONY: bench
bench: install ## replay a shipped trace against the running cluster
	$(BIN)/kvasir bench serve --url http://127.0.0.1:8000 --trace load_tests/traces/azure2023_conv_300.jsonl.gz \
	  --scale auto --limit 60 --slo ttft=1s,itl=100ms

.PHONY: bench-gpu
bench-gpu: install ## decode and prefill on this GPU beside a copy and a matmul (MODEL=checkpoint)
	@test -n "$(MODEL)" || { echo "name a checkpoint: make bench-gpu MODEL=DIR" >&2; exit 2; }
	$(BIN)/python -m workers.bench.gpu --model $(MODEL)

.PHONY: clean
clean: ## remove the venv and every cache
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find cluster router workers tests load_tests -name __pycache__ -type d -prune -exec rm -rf {} +
