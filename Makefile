# make run: set up, train, publish, serve, predict.   make test: every test.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SOURCES := service training clients benchmarks tests
# Virtual folder: protoc writes imports relative to it, so the stubs live inside our package.
PROTOC_PATH := -Iservice/stubs=proto

.PHONY: help setup run test train serve proto lint format bench

help:  ## show the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(INSTALLED)  ## create the virtual environment and install everything into it

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[cpu,train,dev]'
	@touch $@

run: $(INSTALLED)  ## train on the whole of MNIST, publish, serve, and predict one test image
	@$(BIN)/python -m clients.demo

train: $(INSTALLED)  ## train the default recipe and publish a new version into models/
	$(BIN)/mnist-train

serve: $(INSTALLED)  ## serve the newest model in models/, without training
	$(BIN)/mnist-serve

test: $(INSTALLED)  ## run every test, with the coverage of the service
	$(BIN)/python -m pytest --cov --cov-report=term --cov-fail-under=90

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
