# `make plan` and `make test` do their own set-up on a fresh machine: python3, make and a package index suffice.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := pyproject.toml .ci/install.py .ci/constraints-cpu.txt

.PHONY: plan app test test-night lint format bench-des bench-loop bench-accuracy clean

plan: $(VENV)/.base  ## rank cluster designs for the default scenario; ARGS="..." passes options on
	@$(BIN)/moeplan plan $(ARGS)

app: $(VENV)/.base  ## the dashboard
	@$(BIN)/moeplan app $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n 2 --dist loadgroup $(ARGS)

test-night: $(VENV)/.dev  ## ten times as many random scenarios of the cluster; kernels compiled for every architecture
	HYPOTHESIS_PROFILE=night $(BIN)/python -m pytest -q -n 2 tests/simulator/des/test_conservation.py \
		tests/simulator/des/test_stepwise.py tests/simulator/des/test_invariants.py \
		tests/runtime/test_compile_gate.py tests/runtime/engine/test_ranks.py $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-des: $(VENV)/.dev  ## requests per second and memory of the discrete-event model
	$(BIN)/python -m benchmarks.des --requests 10000 100000 1000000 --json benchmarks/results/des.json

bench-accuracy: $(VENV)/.dev  ## held-out errors on measured serving points: make bench-accuracy POINTS=points.csv
	@test -n "$(POINTS)" || { echo "give the measured points: make bench-accuracy POINTS='points.csv more.csv'" >&2; exit 2; }
	$(BIN)/python -m benchmarks.accuracy $(POINTS) $(ARGS)

bench-loop: $(VENV)/.dev  ## a real replay on this machine against its simulation; ARGS="--requests 200"
	$(BIN)/python -m benchmarks.loop $(ARGS)

$(VENV)/.base: $(SETUP)
	@$(PYTHON) .ci/install.py base

$(VENV)/.dev: $(SETUP)
	@$(PYTHON) .ci/install.py dev

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
