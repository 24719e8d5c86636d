# make run: set up, train, publish, serve, predict.   make test: every test.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TOOLS := $(VENV)-tools
INSTALLED := $(VENV)/.installed
SOURCES := service training clients benchmarks tests deploy docs/site setup.py
EXTRAS := cpu,traces,train,dev,docs
CLIENT_EXTRAS := grpc,images
# LOCKED=1: make setup installs the versions of this lock and checks their hashes.
LOCKED ?=
LOCK = deploy/locks/dev-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])').txt
# What pip downloads and what it occupies, with Python 3.11 and an empty cache, on 2026-11-26.
ifeq ($(shell uname -sm),Linux x86_64)
DOWNLOAD := about 3.2 GB to download and 6 GB on disk, most of it PyTorch with CUDA
else
DOWNLOAD := some hundred MB to download, not measured on this system; 3.2 GB on Linux, with CUDA
endif

.PHONY: help setup run test coverage test-compose test-swarm test-kubernetes test-triton test-clients test-gpu test-stops test-faults fuzz train serve proto lint format bench images secrets certificates locks licences digests sbom audit dist docs

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 17

setup: $(INSTALLED)  ## create the virtual environment and install everything into it

# $(call step,N/M,what it does,command): run a step, and say how long it took.
define step
@echo "== $(1) $(2)"; began=$$SECONDS; $(3) && echo "== $(1) took $$((SECONDS - began)) s"
endef

$(INSTALLED): pyproject.toml clients/python/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(call step,1/4,Create the virtual environment $(VENV),\
	  { test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); })
	$(if $(LOCKED),$(call step,2/4,Install the packages that $(LOCK) pins,\
	  $(BIN)/python -m pip install --require-hashes --no-deps --requirement $(LOCK)),\
	$(call step,2/4,Update pip (2 MB); new versions show which package they install,\
	  $(BIN)/python -m pip install --upgrade pip))
	$(if $(LOCKED),$(call step,3/4,Install this checkout,\
	  $(BIN)/python -m pip install --no-deps --no-build-isolation --editable .),\
	$(call step,3/4,Install the packages: $(DOWNLOAD),\
	  $(BIN)/python -m pip install --editable '.[$(EXTRAS)]'))
	$(if $(LOCKED),$(call step,4/4,Install the client and mnist-predict,\
	  $(BIN)/python -m pip install --no-deps --no-build-isolation --editable clients/python),\
	$(call step,4/4,Install the client and mnist-predict,\
	  $(BIN)/python -m pip install --editable 'clients/python[$(CLIENT_EXTRAS)]'))
	@touch $@

run: $(INSTALLED)  ## train on all of MNIST, publish, serve, and predict one test image
	@$(BIN)/python -m clients.demo

train: $(INSTALLED)  ## train the default recipe and publish a new version into models/
	$(BIN)/mnist-train

serve: $(INSTALLED)  ## serve the newest model in models/, without training
	$(BIN)/mnist-serve

# Measuring the coverage of the service would make the tests of training 1.4 times as long.
# In two processes, since neither keeps two cores busy: real servers and clients, and all other tests.
test: $(INSTALLED)  ## run every test
	@mkdir -p build && $(BIN)/python -m pytest --ignore tests/e2e --ignore tests/triton >build/test.log 2>&1 & \
	  others=$$!; status=0; $(BIN)/python -m pytest tests/e2e tests/triton || status=$$?; \
	  wait $$others || status=$$?; cat build/test.log; exit $$status

coverage: $(INSTALLED)  ## run the tests of the service, and measure how much of it they cover
	$(BIN)/python -m pytest --ignore tests/training --cov --cov-report=term --cov-fail-under=90

test-compose: $(INSTALLED)  ## test docker-compose.yml on a real Docker engine (needs root; five to ten minutes)
	$(BIN)/python -m tests.compose $(ARGS)

test-swarm: $(INSTALLED)  ## test the same stack on a swarm of one node (needs root; five minutes)
	$(BIN)/python -m tests.compose.swarm $(ARGS)

test-kubernetes: $(INSTALLED)  ## build the Kubernetes overlays and validate them against schemas
	$(if $(LOCKED),,$(BIN)/python -m pip install --quiet --editable '.[kubernetes]')
	$(BIN)/python -m tests.kubernetes

test-triton: $(INSTALLED)  ## run Triton's perf_analyzer and the KServe SDK against a server (two minutes)
	$(BIN)/python -m tests.triton

test-clients: $(INSTALLED)  ## run the examples in TypeScript, Node and Go against a server (a minute)
	$(BIN)/python -m tests.clients

test-gpu: $(INSTALLED)  ## serve and train on CUDA (a GPU; the extra 'gpu' instead of 'cpu'; 2 minutes)
	$(BIN)/python -m tests.gpu $(ARGS)

test-stops: $(INSTALLED)  ## stop a real server 300 times (10 minutes); ARGS="--busy 2 --limit 10"
	$(BIN)/python -m tests.stops $(ARGS)

test-faults: $(INSTALLED)  ## random faults and hostile clients for 10 minutes; ARGS="--seconds 120 --seed 1"
	$(BIN)/python -m tests.faults $(ARGS)

fuzz: $(INSTALLED)  ## feed mutated bytes to every parser, a million each; ARGS="--runs 20000" for fewer
	@for name in $$(ls tests/fuzz/harnesses | sed -n 's/^\([a-z]\w*\)\.py$$/\1/p'); do \
	  echo "== $$name"; $(BIN)/python -m tests.fuzz $$name --runs 1000000 $(ARGS) || exit 1; done

images: export VERSION ?= $(shell d=$$(git describe --tags --match 'v*' 2>/dev/null) && echo $$d | sed 's/^v//;s/-/+/;s/-/./g' || echo 0+g$$(git rev-parse --short HEAD))
images: export REVISION ?= $(shell git rev-parse HEAD 2>/dev/null)
images: export CREATED ?= $(shell git log -1 --format=%cI 2>/dev/null)
images:  ## build the images with compose, labelled with this commit
	DOCKER_BUILDKIT=1 COMPOSE_DOCKER_CLI_BUILD=1 $$(docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose) build $(SERVICES)

secrets:  ## create the missing secret files that docker-compose.yml names
	@test -s deploy/secrets/grafana_admin_password || \
	  $(PYTHON) -c 'import secrets; print(secrets.token_urlsafe(24), end="")' >deploy/secrets/grafana_admin_password
	@chmod 444 deploy/secrets/grafana_admin_password

certificates: $(INSTALLED)  ## make an authority and certificates to try TLS; ARGS="host.example 192.0.2.1"
	$(BIN)/python -m deploy.certificates $(ARGS)

# What checks and makes releases, in an environment of its own, with hashes.
$(TOOLS)/.installed: deploy/locks/tools.txt
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --require-hashes --no-deps --requirement $<
	@touch $@

locks: $(TOOLS)/.installed  ## write deploy/locks after a change of pyproject.toml; ARGS=--upgrade: newest
	PATH="$(TOOLS)/bin:$$PATH" deploy/locks/update.sh $(ARGS)

digests:  ## pin the base images by the digests that their tags have now (needs Docker)
	$(PYTHON) -m deploy.supply.digests $(ARGS)

dist: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
dist: $(TOOLS)/.installed  ## build the sdists and wheels of service and client into dist/
	rm -f dist/mnist_service-* dist/mnist_client-*
	$(TOOLS)/bin/python -m build --no-isolation
	$(TOOLS)/bin/python -m build --no-isolation --outdir dist clients/python

sbom: $(TOOLS)/.installed  ## write dist/*.cdx.json: what is in the wheel, and in the images that are built
	@ls dist/mnist_service-*.whl >/dev/null 2>&1 || $(MAKE) dist
	$(TOOLS)/bin/python -m deploy.supply.sbom wheel dist/mnist_service-*.whl
	$(TOOLS)/bin/python -m deploy.supply.sbom images $(IMAGES)

audit: $(TOOLS)/.installed  ## look for known vulnerabilities of the locked packages (status 3: no data)
	$(TOOLS)/bin/python -m deploy.supply.audit $(ARGS)

licences: $(INSTALLED)  ## check the licences of all locked packages against deploy/supply/licences.toml
	$(BIN)/python -m deploy.supply.licences

docs: export NO_MKDOCS_2_WARNING = 1
docs: $(INSTALLED)  ## build the documentation site into build/site; ARGS=serve shows it on port 8080
	$(BIN)/python -m docs.site.reference
	@# Not with --quiet: it hides warnings from strict mode as well, so that they no longer fail the build.
	$(if $(ARGS),$(BIN)/mkdocs $(ARGS) --dev-addr 127.0.0.1:8080 --config-file docs/site/mkdocs.yml,\
	  set -o pipefail; $(BIN)/mkdocs build --config-file docs/site/mkdocs.yml 2>&1 | sed '/^INFO /d')
	@$(if $(ARGS),,echo "The site is in build/site: python3 -m http.server --directory build/site 8080")

bench: $(INSTALLED)  ## measure this server beside its rivals; ARGS="--quick" for a short run
	$(BIN)/python -m benchmarks $(ARGS)

lint: $(INSTALLED)  ## check style, formatting and strict types
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

format: $(INSTALLED)  ## fix formatting, and whatever else ruff can fix
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

proto: $(INSTALLED)  ## generate service/stubs/ and the client's stubs from proto/
	@# From a copy in the folders of our package, since protoc writes Python imports like those.
	rm -rf build/proto && mkdir -p build/proto/service && cp -r proto build/proto/service/stubs
	sed -i 's|^import "inference/|import "service/stubs/inference/|' build/proto/service/stubs/*/*.proto
	$(BIN)/python -m grpc_tools.protoc -Ibuild/proto --python_out=. --grpc_python_out=. \
	  --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --mypy_out=. \
	  $$(cd build/proto && find . -name '*.proto' | sed 's|^\./||' | sort)
	clients/python/generate_stubs.sh $(BIN)/python clients/python
