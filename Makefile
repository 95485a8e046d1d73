PYTHON ?= python3
ARGS ?=

BIN := .venv/bin
STAMP := .venv/.installed
DATA := $(wildcard ../shared/data)
ifneq ($(DATA),)
export HEADWISE_DATA ?= $(abspath $(DATA))
endif

.PHONY: test test-all fuzz check bench clean

test: check  ## everything but the slow tests; ARGS goes to pytest
	$(BIN)/python -m pytest -m "not slow and not fuzz" $(ARGS)

test-all: check
	$(BIN)/python -m pytest -m "not fuzz" $(ARGS)

fuzz: $(STAMP)  ## the laws over random cases, others each time
	$(BIN)/python -m pytest tests/laws --hypothesis-profile=random $(ARGS)

check: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python benchmarks/attention.py $(ARGS)

clean:
	rm -rf .venv build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch comes first and by its exact pin, so that nothing after it can choose another.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install -c constraints.txt -e '.[test,dev]'
	touch $@
