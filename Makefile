PYTHON ?= python3
VENV ?= .venv
export VENV
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo demo-diffusers test check clean

# Post-trains the built-in model with the default recipe and shows before and after.
demo: $(VENV)/.demo
	$(VENV)/bin/grpaint train --name demo-$$(date +%Y%m%d-%H%M%S)

# The same on an SDXL-type pipeline through diffusers: VAE, SFT, MixGRPO with LoRA, exports; no download.
demo-diffusers: $(VENV)/.demo-diffusers
	$(VENV)/bin/python examples/demo-diffusers/run.py

test: $(VENV)/.test
	scripts/test

check: $(VENV)/.dev
	scripts/check

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

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(PIP) -e '.[dev]'
	touch $@ $(VENV)/.test $(VENV)/.demo $(VENV)/.demo-diffusers

clean:
	rm -rf $(VENV)
