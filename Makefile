# Two commands need nothing but Python 3.11 and make: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
NEXT := .venv-next/bin/python -m pip install --quiet --disable-pip-version-check --constraint .venv-next/constraints.txt
PLUGINS := $(wildcard plugins/*)
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadfile

export OMP_NUM_THREADS ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test test-slow test-hydra-next lint bench bench-quick docs clean

demo: $(VENV)/installed ## install, and train LoRA on the built-in classification task
	$(BIN)/python -m adapterkit +method=lora task=seq_cls

test: $(VENV)/tests ## install with plugins and test extras, and run the tests
	$(PYTEST)

test-slow: $(VENV)/tests ## the tests that take minutes
	$(PYTEST) -m slow

test-hydra-next: .venv-next/tests ## the command-line tests on the newest Hydra pre-release
	.venv-next/bin/python -m pytest -q tests/hydra tests/cli tests/sweep

lint: $(VENV)/lint ## ruff, mypy and the import layers
	$(BIN)/ruff format --check adapterkit bench tests plugins
	$(BIN)/ruff check adapterkit bench tests plugins
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/tests ## measure against PEFT: the whole table, written into docs/performance.md
	$(BIN)/python -m bench --write docs/performance.md

bench-quick: $(VENV)/tests ## the same on smaller models, in under five minutes
	$(BIN)/python -m bench --quick

docs: $(VENV)/tests ## write the tables of docs/methods.md anew
	$(BIN)/python -m tests.tables

clean:
	rm -rf .venv .venv-next

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# An editable install is not compiled by pip, and never where PYTHONDONTWRITEBYTECODE is set: a tenth of a second a command.
$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable .
	$(BIN)/python -m compileall -q adapterkit
	touch $@

$(VENV)/tests: pyproject.toml constraints.txt $(PLUGINS:%=%/pyproject.toml) | $(VENV)/bin/python
	$(PIP) --editable '.[test]' $(PLUGINS:%=--editable ./%) --editable tests/plugin
	$(BIN)/python -m compileall -q adapterkit
	touch $@

$(VENV)/lint: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[test,dev]'
	touch $@

.venv-next/tests: pyproject.toml
	$(PYTHON) -m venv .venv-next
	grep -vE '^(hydra-core|omegaconf|antlr4)' constraints.txt > .venv-next/constraints.txt
	$(NEXT) --editable '.[test]' $(PLUGINS:%=--editable ./%) --editable tests/plugin \
		'hydra-core>=1.4.0rc3,<1.5' 'omegaconf>=2.4.1rc1,<2.5'
	touch $@
