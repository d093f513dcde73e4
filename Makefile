# The commands of the project. `make help` lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
IMAGE ?= workqueue-operator:dev

.PHONY: help
help: ## list the commands
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The pinned development environment. It is made again whenever the lock changes.
.venv/.ready: requirements-dev.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "python3 (3.11 or later) is needed: install it, or name one with PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11: name another one with PYTHON=..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements-dev.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: venv
venv: .venv/.ready ## the pinned development environment in .venv

.PHONY: cluster
cluster: venv ## a local Kubernetes with RabbitMQ's image, built once (about 12 minutes), then up in seconds
	@$(BIN)/python -m hack.cluster up

.PHONY: cluster-down
cluster-down: venv ## take the local cluster away, with everything that belongs to it
	@$(BIN)/python -m hack.cluster down

.PHONY: image
image: cluster ## build the image and load it into the local cluster (with CLUSTER=current: push IMAGE yourself)
ifneq ($(CLUSTER),current)
	@$(BIN)/python -m hack.image --tag $(IMAGE) --load
endif

.PHONY: demo
demo: image ## the main job, start to end: cluster, RabbitMQ, operator, a WorkQueue, real documents counted
	@$(BIN)/python -m hack.demo --image $(IMAGE)

.PHONY: generate
generate: image ## write every generated file anew
	@$(BIN)/python -m hack.generate

.PHONY: docs
docs: venv ## the documentation as a site with search, in build/site
	@$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --conf-dir docs . build/site
	@echo "build/site/index.html"

.PHONY: format
format: venv ## format the code
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .

.PHONY: lint
lint: venv ## style, types and layers
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

.PHONY: unit
unit: venv ## the tests that need nothing running
	@$(BIN)/pytest tests/unit

.PHONY: e2e
e2e: image ## the end-to-end tests; TEST=name picks some
	@$(BIN)/pytest tests/e2e $(if $(TEST),-k '$(TEST)')

# These change or compare what the whole machine or cluster has; the others mostly wait, so they share it.
ALONE := tests/cluster tests/walkthrough
JOBS ?= 3

.PHONY: test
test: lint image ## everything: style, types, layers, generated files, all tests but the nightly (JOBS=3 files at once)
	@$(BIN)/pytest $(ALONE) -m 'not nightly'
	@$(BIN)/pytest tests $(addprefix --ignore=,$(ALONE)) -m 'not nightly' --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

.PHONY: faults
faults: image ## the fault matrix, whole (about an hour); ARGS=--write puts its table into docs/guarantees.md
	@$(BIN)/python -m hack.bench.faults $(ARGS)

.PHONY: nightly
nightly: faults ## what takes too long for `make test`: the fault matrix, and the tests elsewhere that are marked nightly
	@$(BIN)/pytest tests --ignore=tests/faults -m nightly --numprocesses $(JOBS) --dist load

SERIES ?= 3.10 4.0 4.3

.PHONY: soak
soak: venv ## ten minutes of random faults for each of SERIES="3.10 4.0 4.3" of RabbitMQ, and a ledger that must balance
	@set -e; for series in $(SERIES); do $(BIN)/python -m hack.bench.soak --series $$series $(ARGS); done

.PHONY: bench
bench: image ## every benchmark, into docs/benchmarks (at most 30 minutes); ARGS='--only worker,wake' picks some
	@$(BIN)/python -m hack.bench $(ARGS)

.PHONY: bench-quick
bench-quick: image ## the same with fewer samples (at most 5 minutes), into build/benchmarks
	@$(BIN)/python -m hack.bench --quick --output build/benchmarks $(ARGS)

.PHONY: audit
audit: venv ## look for known weaknesses of what the image has; needs the Internet
	@$(BIN)/python -m hack.image.audit

.PHONY: sbom
sbom: venv ## a bill of materials of what the image has, into build/sbom.cdx.json
	@$(BIN)/python -m hack.image.sbom
