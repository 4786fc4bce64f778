# Two commands do everything on a fresh machine with Python 3.11 and make: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
# Two tests at a time, the second process beginning with the short ones: most of the long ones wait for processes of
# their own. `make test TESTS_AT_ONCE=0` runs them one by one.
TESTS_AT_ONCE ?= 2

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	$(BIN)/vlbench ablate --component fra

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n $(TESTS_AT_ONCE) --dist worksteal

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy vlbench

clean:
	rm -rf $(VENV)

# Exact versions come from constraints.txt, so every machine tests the same ones. Where an index offers a CPU build of
# that torch version, pip takes it.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[test]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
