# `make help` lists the targets. Each creates the environment it needs in .venv (PYTHON=python3.12 make ... to choose one).
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
SUITE  := $(VENV)/upstream/.ready
DOCS   := .venv-docs

.DEFAULT_GOAL := help
.PHONY: help env demo test reports layouts faults fuzz lint types format docs clean

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /\1\t/' | expand -t 12

env: $(READY)  ## create .venv with the pinned versions of requirements.txt

$(READY): requirements.txt setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==$$(sed -n 's/^torch==//p' requirements.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

demo: $(READY)  ## train, share and evaluate a residual Llama and one with DHC x4; writes runs/demo/report.html
	$(BIN)/modeling-hc demo

# transformers' own model tests, which only its source distribution holds; the tests on them skip where this fails.
$(SUITE): $(READY)
	mkdir -p $(@D)
	-cd $(@D) && version=$$(../bin/python -c 'from importlib.metadata import version; print(version("transformers"))') && \
	../bin/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary transformers transformers==$$version && \
	tar -xzf transformers-$$version.tar.gz transformers-$$version/tests && \
	touch transformers-$$version/tests/__init__.py .ready

test: $(READY) $(SUITE)  ## run the test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu"

reports: $(READY)  ## repeat what users do that once failed, with the stock model and with ours, and print a table
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m report --reports

layouts: $(READY)  ## compare DDP, FSDP2, tensor parallelism and resumed runs with one process; long
	$(BIN)/python -m campaigns.layouts

faults: $(READY)  ## kill, stop and starve training runs, resume them and compare; rewrites results/faults
	$(BIN)/python -m campaigns.faults

fuzz: $(READY)  ## try thousands of bad configurations, inputs and checkpoints; writes results/robustness/bad-input.json
	$(BIN)/python -m campaigns.bad_input --output results/robustness/bad-input.json

lint: $(READY)  ## check style
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(READY)  ## check types, as pyproject.toml configures
	$(BIN)/mypy

format: $(READY)  ## mend style
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

$(DOCS)/.ready: requirements-docs.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	touch $@

docs: $(DOCS)/.ready  ## build the documentation into site/; it needs no other environment
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict

clean:  ## remove the environments and caches; keeps runs/
	rm -rf $(VENV) $(DOCS) site .mypy_cache .pytest_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
