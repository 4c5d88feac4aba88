# make install | run | test | test-avx2 | lint | types | develop | cuda-compile | clean      (docs/building.md)
# make contract | patches | patches-next | next | proposals | docs | wheel-check | licences     (docs/upgrading.md)
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

# What libraries and our kernels read of a CPU that has AVX2 and no more; tests/avx2 tells torch.
# Inductor's cache does not know for which instruction set it compiled (findings/inductor_cache_isa.sh), so this has one of its own.
AVX2 := VLLM_DIFFUSION_CPU_ISA=avx2 ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 \
    MKL_ENABLE_INSTRUCTIONS=AVX2 PYTHONPATH=$(CURDIR)/tests/avx2 \
    TORCHINDUCTOR_CACHE_DIR=$(CURDIR)/build/avx2/inductor VLLM_CACHE_ROOT=$(CURDIR)/build/avx2/vllm

# Two engines at a time on two cores. The tests of a file share a process, and files run in their order.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: install run test test-avx2 lint types format develop cuda-compile patches clean FORCE
.PHONY: contract docs docs-check hooks licences next patches-next proposals proposals-check wheel-check
.DEFAULT_GOAL := run
.DELETE_ON_ERROR:

install: $(INSTALLED)

run: $(INSTALLED)
	$(BIN)/vllm diffuse --demo

test: $(INSTALLED) $(VENV)/.extra-test
	$(PYTEST) $(PYTEST_ARGS)

# The same as on a CPU without AVX-512 (docs/building.md).
test-avx2: $(INSTALLED) $(VENV)/.extra-test
	$(AVX2) $(PYTEST) $(PYTEST_ARGS)

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

patches:
	$(PYTHON) tools/patches.py verify
	$(PYTHON) tools/patches.py export --check
	$(PYTHON) tools/patches.py status

# The series for the release after the pin.
patches-next:
	$(PYTHON) tools/patches.py verify --next
	$(PYTHON) tools/patches.py export --next --check
	$(PYTHON) tools/patches.py status --next

# What the overlay relies on in upstream; seconds.
contract: $(INSTALLED) $(VENV)/.extra-test
	$(BIN)/python -m pytest -q tests/upstream_contract

# The tests that need no engine, on the release after the pin.
next: $(INSTALLED) $(VENV)/.extra-test
	$(BIN)/python tools/next_tree.py -q

# The patches of docs/upstream/, from the series and the overlay.
proposals:
	$(PYTHON) tools/proposals.py

proposals-check:
	$(PYTHON) tools/proposals.py --check

# The pages of docs/ that are made from the code.
docs: $(INSTALLED)
	$(BIN)/python tools/reference_docs.py

docs-check: $(INSTALLED)
	$(BIN)/python tools/reference_docs.py --check

# Builds the wheel as a file and compares its content with upstream, the series and the overlay.
wheel-check: $(VENV)/.build-tools
	rm -rf build/wheel
	$(BIN)/python -m pip wheel --no-deps --no-build-isolation --wheel-dir build/wheel .
	$(BIN)/python tools/check_wheel.py build/wheel/*.whl

licences: $(INSTALLED)
	$(BIN)/python tools/check_licences.py

# Checks on every commit (.pre-commit-config.yaml).
hooks: $(INSTALLED) $(VENV)/.extra-dev
	$(BIN)/pre-commit install

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
