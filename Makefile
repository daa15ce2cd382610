# One environment, made once for each state of pyproject.toml and constraints.txt.
VENV := .venv
PYTHON ?= python3.11
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ARGS ?=

.DEFAULT_GOAL := help

.PHONY: help install run test test-full docs lint format clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(STAMP)  ## make .venv and install everything, at the versions of constraints.txt

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

run: $(STAMP)  ## train the tiny GLM-Omni (ARGS="key=value ..." adds overrides)
	$(BIN)/slime-launch +experiment=glm_omni_grpo $(ARGS)

test: $(STAMP)  ## everything but the long proofs
	$(BIN)/pytest -m "not full" $(ARGS)

test-full: $(STAMP)  ## the long proofs: three seeds of each experiment
	$(BIN)/pytest -m full -rP $(ARGS)

docs: $(STAMP)  ## write docs/config.md, the reference of all keys, from the schema and the YAML
	$(BIN)/slime-launch mode=docs

lint: $(STAMP)  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## let ruff rewrite
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment
	rm -rf $(VENV)
