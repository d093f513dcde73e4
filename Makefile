# The commands of the project. `make help` lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
PIP = $(BIN)/pip install --quiet --disable-pip-version-check
IMAGE ?= workqueue-operator:dev

.PHONY: help
help: ## list the commands
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The pinned environment: first what the cluster and the demo need, then the tools for development. A changed lock file
# rebuilds it.
.venv/.base: requirements.lock requirements-build.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 or later is required. Install it, or set PYTHON=/path/to/python3."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11. Set PYTHON=/path/to/python3 to a newer one."; exit 1; }
	$(PYTHON) -m venv .venv
	$(PIP) --require-hashes --requirement requirements.lock --requirement requirements-build.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

.venv/.ready: .venv/.base requirements-dev.lock
	$(PIP) --require-hashes --requirement requirements-dev.lock
	@touch $@

.PHONY: base
base: .venv/.base

.PHONY: venv
venv: .venv/.ready ## make the pinned development environment in .venv

.PHONY: cluster
cluster: base ## start a local Kubernetes (the first build takes about 10 minutes; with CLUSTER=kind, docker and 1 minute)
	@$(BIN)/python -m hack.cluster up

.PHONY: cluster-down
cluster-down: base ## delete the local cluster and everything in it
	@$(BIN)/python -m hack.cluster down

.PHONY: image
image: base ## start the cluster and build and load the image (with CLUSTER=current, push IMAGE yourself)
	@$(BIN)/python -m hack.image --tag $(IMAGE) --up

.PHONY: load
load: cluster ## build IMAGE=mine:1 from the Dockerfile in DIR=path and load it into the cluster
	@$(BIN)/python -m hack.image.load '$(IMAGE)' '$(DIR)'

.PHONY: demo
demo: announcement image ## run the product end to end: cluster, RabbitMQ, operator, a WorkQueue that counts words in documents
	@$(BIN)/python -m hack.demo --image $(IMAGE)

.PHONY: announcement
announcement:
	@cat hack/demo/announcement$(if $(CLUSTER),-$(CLUSTER)).txt

.PHONY: generate
generate: image ## rewrite every generated file
	@$(BIN)/python -m hack.generate

.PHONY: screenshots
screenshots: venv ## take the pictures of the web page again
	@$(BIN)/python -m hack.generate.screenshots

.PHONY: docs
docs: venv ## build the documentation site with search, in build/site
	@$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going --conf-dir docs . build/site
	@echo "build/site/index.html"

.PHONY: format
format: venv ## format the code
	@$(BIN)/ruff format --quiet .
	@$(BIN)/ruff check --quiet --fix .

.PHONY: lint
lint: venv ## check style, types, layers and prose
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m hack.lint

.PHONY: unit
unit: venv ## run the tests that need no cluster and no RabbitMQ
	@$(BIN)/pytest tests/unit

.PHONY: coverage
coverage: venv ## run `make unit`, and show which lines it does not run; build/coverage.xml has them too
	@mkdir -p build && $(BIN)/coverage run -m pytest tests/unit
	@$(BIN)/coverage report --skip-covered
	@$(BIN)/coverage xml --quiet

.PHONY: specs
specs: venv ## check the specifications in docs/specs with TLC (at most 10 minutes); ARGS='--trace retire' selects some
	@$(BIN)/python -m hack.specs $(ARGS)

.PHONY: e2e
e2e: image ## run the end-to-end tests; TEST=name selects some
	@$(BIN)/pytest tests/e2e $(if $(TEST),-k '$(TEST)')

# tests/cluster compares the state of the whole machine before and after, so it runs alone. The others mostly wait, so
# they run side by side.
JOBS ?= 4

SIDE_BY_SIDE := --ignore=tests/cluster --ignore=tests/walkthrough --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

# In continuous integration a test that failed beside others runs once more without them. What fails twice fails the run.
ALONE := --last-failed --last-failed-no-failures none --exitfirst
define pytest
$(BIN)/pytest $(1) $(2)$(if $(CI), || { echo "Each failed test once more:" && $(BIN)/pytest $(1) $(ALONE); })
endef

.PHONY: test
test: lint image ## run `make lint` and all tests that are not marked slow or nightly (JOBS=4 files at once)
	@$(call pytest,tests/cluster -m 'not slow and not nightly')
	@$(call pytest,tests -m 'not slow and not nightly',$(SIDE_BY_SIDE))

.PHONY: slow
slow: walkthrough ## run `make walkthrough` and the tests marked slow, as continuous integration does after `make test`
	@$(call pytest,tests -m 'slow and not nightly',$(SIDE_BY_SIDE))

# The pages install the operator for the whole cluster and remove it again. A second cluster keeps a running demo
# intact. With CLUSTER=current there is no second cluster, and the tests refuse to start beside a demo.
WALKTHROUGH := WORKQUEUE_CLUSTER_NAME=$(or $(WORKQUEUE_CLUSTER_NAME),workqueue)-pages

.PHONY: walkthrough
walkthrough: image ## follow the commands of the documentation in a cluster of their own
ifeq ($(CLUSTER),current)
	@$(call pytest,tests/walkthrough)
else
	@export $(WALKTHROUGH); trap '$(BIN)/python -m hack.cluster down' EXIT; \
	  $(BIN)/python -m hack.cluster up && $(BIN)/python -m hack.image --tag $(IMAGE) --load && { $(call pytest,tests/walkthrough); }
endif

.PHONY: faults
faults: image ## run the whole fault matrix (about 90 minutes); ARGS=--write updates the table in docs/fault-matrix.md
	@$(BIN)/python -m hack.bench.faults $(ARGS)

MINORS := $(basename $(notdir $(wildcard hack/cluster/minors/*.mod)))

.PHONY: minors
minors: venv ## run the tests of a control plane without nodes with other Kubernetes minors
	@for minor in $(MINORS); do \
	  WORKQUEUE_KUBERNETES=$$minor $(BIN)/pytest tests/generated tests/neighbours -m 'not nightly' || exit 1; \
	done

.PHONY: nightly
nightly: faults minors ## run the fault matrix and the tests marked slow or nightly
	@$(BIN)/pytest tests --ignore=tests/faults --ignore=tests/walkthrough -m 'slow or nightly' --numprocesses $(JOBS) --dist load

SEED ?= 0

.PHONY: simulate
simulate: venv ## replay a simulated cluster with SEED=number and print its story
	@$(BIN)/python -m tests.simulation --seed $(SEED) $(ARGS)

.PHONY: sequences
sequences: venv ## change WorkQueues as SEED=number draws it, and compare each with a fresh one; ARGS='--sequences 100'
	@$(BIN)/python -m tests.generated --seed $(SEED) $(ARGS)

SERIES ?= 3.10 4.0 4.3

.PHONY: soak
soak: venv ## inject random faults for 10 minutes per RabbitMQ of SERIES="3.10 4.0 4.3", then check that no message is lost
	@set -e; for series in $(SERIES); do $(BIN)/python -m hack.bench.soak --series $$series $(ARGS); done

.PHONY: bench
bench: image ## run every benchmark (at most 85 minutes) and update docs/benchmarks; ARGS='--only worker,wake' selects some
	@$(BIN)/python -m hack.bench $(ARGS)

.PHONY: bench-quick
bench-quick: image ## run the benchmarks with fewer samples (at most 10 minutes), into build/benchmarks
	@$(BIN)/python -m hack.bench --quick --output build/benchmarks $(ARGS)

.PHONY: audit
audit: venv ## check the image's packages for known vulnerabilities; needs the Internet
	@$(BIN)/python -m hack.image.audit

.PHONY: sbom
sbom: venv ## write a bill of materials of the image to build/sbom.cdx.json
	@$(BIN)/python -m hack.image.sbom

.PHONY: distribution
distribution: venv ## build the wheel, the source distribution and workqueue.pyz, in build/distribution
	@$(BIN)/python -m hack.release.distribution build/distribution

.PHONY: release
release: venv ## make all files of a release from a tag, in build/release; PUSH=registry/owner publishes and signs too
	@$(BIN)/python -m hack.release $(if $(PUSH),--push $(PUSH)) $(ARGS)

# All lock files have pip's format with hashes. Each names its command on its second line. Versions in an existing
# lock file stay unless ARGS=--upgrade or ARGS='--upgrade-package NAME' raises them. requirements-dev.lock comes
# first because it constrains the next two.
UV_VERSION := 0.13.9
UV := $(CURDIR)/build/uv/bin/uv
COMPILE = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate

build/uv/.$(UV_VERSION): .venv/.ready
	@$(BIN)/python -m venv --clear build/uv
	@build/uv/bin/pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@

.PHONY: lock
lock: build/uv/.$(UV_VERSION) ## write every lock file; ARGS=--upgrade raises the versions
	@$(COMPILE) $(ARGS) --extra operator --extra cli --group dev pyproject.toml -o requirements-dev.lock
	@$(COMPILE) $(ARGS) --extra operator --extra cli --constraints requirements-dev.lock pyproject.toml -o requirements.lock
	@$(COMPILE) $(ARGS) --group build --constraints requirements-dev.lock -o requirements-build.lock
	@cd hack/bench/environment && $(COMPILE) $(ARGS) peers.in -o peers.lock
	@$(BIN)/python -m hack.cluster.toolchain
