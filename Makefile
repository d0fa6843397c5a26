PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

.PHONY: build debug tsan asan quicktest test numa proofs machines arm64 arm64-tests fuzz graphs soak \
	lint docs bench clean

build: $(VENV)
	$(BIN)/pip install -q -e '.[test,serve]'

$(VENV):
	$(PYTHON) -m venv $(VENV)

debug: $(VENV)
	touch deepsched/runtime/*.pyx
	DEEPSCHED_DEBUG=1 $(BIN)/pip install -q -e '.[test]'

tsan: $(VENV)
	$(BIN)/python -m tests.support.sanitized thread

asan: $(VENV)
	$(BIN)/python -m tests.support.sanitized address

quicktest:
	$(BIN)/pytest -q -x tests/test_queue.py tests/test_groups.py tests/test_dispatch.py \
		tests/test_values.py tests/test_errors.py tests/test_partition.py

test:
	$(BIN)/pytest

numa:
	$(BIN)/python -m tests.support.guest -m bench.numa

proofs:
	$(PYTHON) -m proofs

machines:
	$(BIN)/python -m tests.machines

arm64:
	$(BIN)/python -m tests.arm64

arm64-tests:
	$(BIN)/python -m tests.arm64 tests

fuzz: $(VENV)
	$(BIN)/pip install -q atheris -e '.[test,serve]'
	$(BIN)/python -m fuzz

graphs:
	$(BIN)/python -m tests.support.graphs

soak:
	$(BIN)/python -m tests.soak
	$(BIN)/python -m tests.soak.server
	$(BIN)/pytest -m soak

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# -E reads every page, since a page that is not read again does not warn again.
docs: $(VENV)
	$(BIN)/pip install -q -e '.[docs]'
	$(BIN)/sphinx-build -q -E -W -c docs -d build/doctrees . build/docs

bench:
	$(BIN)/pip install -q -e '.[bench]'
	$(BIN)/python -m bench.hot_path
	$(BIN)/python -m bench.micro
	$(BIN)/python -m bench.peers

clean:
	rm -rf build *.egg-info deepsched/runtime/*.so deepsched/runtime/*.cpp
