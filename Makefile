PYTHON ?= python3
VENV ?= .venv
export VENV
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test check clean

# Post-trains the built-in model with the default recipe and shows before and after.
demo: $(VENV)/.demo
	$(VENV)/bin/grpaint train --name demo-$$(date +%Y%m%d-%H%M%S)

test: $(VENV)/.test
	scripts/test

check: $(VENV)/.dev
	scripts/check

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(PIP) -e .
	touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/bin/python
	$(PIP) -e '.[test]'
	touch $@ $(VENV)/.demo

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(PIP) -e '.[dev]'
	touch $@ $(VENV)/.test $(VENV)/.demo

clean:
	rm -rf $(VENV)
