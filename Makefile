# make run: set up, train, publish, serve, predict.   make test: every test.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SOURCES := service training clients benchmarks tests deploy
EXTRAS := cpu,train,dev
# What pip downloads, measured on 2026-11-26 with Python 3.11 and an empty cache.
DOWNLOAD := $(if $(filter Linux,$(shell uname -s)),TODO,TODO)
# Virtual folder: protoc writes imports relative to it, so the stubs live inside our package.
PROTOC_PATH := -Iservice/stubs=proto

.PHONY: help setup run test test-compose test-swarm test-kubernetes test-gpu train serve proto lint format bench images secrets

help:  ## show the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 17

setup: $(INSTALLED)  ## create the virtual environment and install everything into it

# $(call step,N/M,what it does,command): run a step, and say how long it took.
define step
@echo "== $(1) $(2)"; began=$$SECONDS; $(3) && echo "== $(1) took $$((SECONDS - began)) s"
endef

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(call step,1/3,Create the virtual environment $(VENV),\
	  { test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); })
	$(call step,2/3,Update pip (2 MB): a newer one shows which package it is installing,\
	  $(BIN)/python -m pip install --upgrade pip)
	$(call step,3/3,Install the packages: $(DOWNLOAD),\
	  $(BIN)/python -m pip install --editable '.[$(EXTRAS)]')
	@touch $@

run: $(INSTALLED)  ## train on the whole of MNIST, publish, serve, and predict one test image
	@$(BIN)/python -m clients.demo

train: $(INSTALLED)  ## train the default recipe and publish a new version into models/
	$(BIN)/mnist-train

serve: $(INSTALLED)  ## serve the newest model in models/, without training
	$(BIN)/mnist-serve

test: $(INSTALLED)  ## run every test, with the coverage of the service
	$(BIN)/python -m pytest --cov --cov-report=term --cov-fail-under=90

test-compose: $(INSTALLED)  ## docker-compose.yml on a real Docker engine (root; five to ten minutes)
	$(BIN)/python -m tests.compose $(ARGS)

test-swarm: $(INSTALLED)  ## the same stack on a swarm of one node (root; some five minutes)
	$(BIN)/python -m tests.compose.swarm $(ARGS)

test-kubernetes: $(INSTALLED)  ## build the Kubernetes overlays and check them against schemas
	$(BIN)/python -m pip install --quiet --editable '.[kubernetes]'
	$(BIN)/python -m tests.kubernetes

test-gpu: $(INSTALLED)  ## serve and train on CUDA (a GPU; the extra 'gpu' instead of 'cpu'; two minutes)
	$(BIN)/python -m tests.gpu $(ARGS)

images: export VERSION ?= $(shell d=$$(git describe --tags --match 'v*' 2>/dev/null) && echo $$d | sed 's/^v//;s/-/+/;s/-/./g' || echo 0+g$$(git rev-parse --short HEAD))
images: export REVISION ?= $(shell git rev-parse HEAD 2>/dev/null)
images: export CREATED ?= $(shell git log -1 --format=%cI 2>/dev/null)
images:  ## build the images with compose, marked with this commit
	DOCKER_BUILDKIT=1 COMPOSE_DOCKER_CLI_BUILD=1 $$(docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose) build

secrets:  ## make the secret files that docker-compose.yml names, where they are not there yet
	@test -s deploy/secrets/grafana_admin_password || \
	  $(PYTHON) -c 'import secrets; print(secrets.token_urlsafe(24), end="")' >deploy/secrets/grafana_admin_password
	@chmod 444 deploy/secrets/grafana_admin_password

bench: $(INSTALLED)  ## measure this server beside its rivals; make bench ARGS="--quick" for a taste
	$(BIN)/python -m benchmarks $(ARGS)

lint: $(INSTALLED)  ## lint, formatting and strict types
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

format: $(INSTALLED)  ## mend what lint can mend
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

proto: $(INSTALLED)  ## make service/stubs/ from proto/
	$(BIN)/python -m grpc_tools.protoc $(PROTOC_PATH) --python_out=. --grpc_python_out=. \
	  --plugin=protoc-gen-mypy=$(BIN)/protoc-gen-mypy --mypy_out=. \
	  $$(cd proto && find . -name '*.proto' | sed 's|^\./|service/stubs/|' | sort)
