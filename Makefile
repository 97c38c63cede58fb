PYTHON ?= python3
VENV ?= .venv
export VENV
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check

NODE_PACKAGES = tests/browser/node_modules/.package-lock.json

.DEFAULT_GOAL := demo

.PHONY: demo demo-diffusers test check docs clean help

help: ## list what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  VENV=DIR and PYTHON=python3.12 choose another virtual environment and interpreter"

demo: $(VENV)/.demo ## post-train the built-in model with the default recipe, show before and after
	$(VENV)/bin/grpaint train --name demo-$$(date +%Y%m%d-%H%M%S)

demo-diffusers: $(VENV)/.demo-diffusers ## a small SDXL-type pipeline through VAE, SFT, MixGRPO with LoRA and exports
	$(VENV)/bin/python examples/demo-diffusers/run.py

test: $(VENV)/.test $(NODE_PACKAGES) ## run the tests
	scripts/test

check: $(VENV)/.dev $(NODE_PACKAGES) ## lint, format, types, import contracts, links of the pages
	scripts/check

docs: $(VENV)/.docs ## build the site from docs/ into site/
	$(VENV)/bin/zensical build --clean --strict

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(PIP) -e .
	touch $@

$(VENV)/.demo-diffusers: pyproject.toml | $(VENV)/bin/python
	$(PIP) -e '.[diffusers]'
	touch $@ $(VENV)/.demo

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	$(PIP) -e '.[test]'
	touch $@ $(VENV)/.demo $(VENV)/.demo-diffusers

$(VENV)/.docs: pyproject.toml | $(VENV)/bin/python
	$(PIP) -e '.[docs]'
	touch $@ $(VENV)/.demo

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(PIP) -e '.[dev]'
	touch $@ $(VENV)/.test $(VENV)/.docs $(VENV)/.demo $(VENV)/.demo-diffusers

$(NODE_PACKAGES): tests/browser/package-lock.json
	@if command -v npm > /dev/null; then npm ci --prefix tests/browser --no-audit --no-fund --loglevel error; \
	else echo "npm is missing: the checks of the pages' scripts are skipped (Debian: apt-get install nodejs npm)"; fi

clean: ## remove the virtual environment and the node packages
	rm -rf $(VENV) tests/browser/node_modules
