# make install | run | test | lint | types | bench | develop | cuda-compile | clean      (docs/building.md)
#
# Each target makes what it needs; what is up to date is not made again.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

PINS := upstream.toml pyproject.toml $(wildcard CMakeLists.txt)
BUILD := $(shell find build_support patches csrc -type f ! -path '*/__pycache__/*' 2>/dev/null)
OVERLAY := $(shell find vllm -type f ! -path '*/__pycache__/*' ! -name '*.so' 2>/dev/null)

# An editable install, once made, is what the other targets use.
INSTALLED := $(if $(wildcard $(VENV)/.develop),$(VENV)/.develop,$(VENV)/.installed)

.PHONY: install run test lint types format bench develop cuda-compile patches clean FORCE
.DEFAULT_GOAL := run
.DELETE_ON_ERROR:

install: $(INSTALLED)

run: $(INSTALLED)
	$(BIN)/vllm diffuse --demo

test: $(INSTALLED) $(VENV)/.extra-test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.extra-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' 2>/dev/null \
	    | xargs -r $(BIN)/clang-format --dry-run --Werror

# The overlay's types, checked against the installed tree.
types: $(INSTALLED) $(VENV)/.extra-dev
	$(BIN)/python tools/typecheck.py

format: $(VENV)/.extra-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' 2>/dev/null \
	    | xargs -r $(BIN)/clang-format -i

bench: $(INSTALLED)
	@set -e; for script in benchmarks/bench_*.py; do \
	    echo "== $$script"; $(BIN)/python "$$script"; done

patches:
	$(PYTHON) tools/patches.py verify
	$(PYTHON) tools/patches.py export --check
	$(PYTHON) tools/patches.py status

# Editable: edits of the overlay are live, the kernels are rebuilt incrementally.
develop: | $(BIN)/python
	@rm -f $(VENV)/.develop
	@$(MAKE) --no-print-directory $(VENV)/.develop

# Compiles the CUDA kernels (sm_80, sm_90a, PTX) against whatever torch .venv has; needs no GPU.
cuda-compile: $(VENV)/.build-tools
	$(BIN)/python -m build_support.kernels --device cuda --build build/cuda-compile

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(PINS) $(BUILD) $(OVERLAY) | $(BIN)/python
	$(BIN)/python -m build_support.fetch
	$(BIN)/python -m pip install .
	@rm -f $(VENV)/.develop
	@touch $@

$(VENV)/.build-tools: upstream.toml | $(BIN)/python
	$(BIN)/python -m build_support.requirements build > $(VENV)/requirements.txt
	$(BIN)/python -m pip install -r $(VENV)/requirements.txt
	@touch $@

$(VENV)/.develop: $(PINS) $(BUILD) $(VENV)/.build-tools $(VENV)/overlay.list | $(BIN)/python
	$(BIN)/python -m build_support.fetch
	$(BIN)/python -m pip install --no-build-isolation -e .
	@rm -f $(VENV)/.installed
	@touch $@

# Changes only when a file of the overlay comes or goes, which an editable install must be told.
$(VENV)/overlay.list: FORCE | $(BIN)/python
	@printf '%s\n' $(sort $(OVERLAY)) > $@.new
	@cmp -s $@.new $@ && rm $@.new || mv $@.new $@

FORCE:

$(VENV)/.extra-%: upstream.toml | $(BIN)/python
	$(BIN)/python -m build_support.requirements $* > $(VENV)/requirements.txt
	$(BIN)/python -m pip install -r $(VENV)/requirements.txt
	@touch $@

clean:
	rm -rf build dist $(VENV)
