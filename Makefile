# Two commands are enough: `make run` and `make test`. `make help` lists the rest.
.DEFAULT_GOAL := help
.PHONY: help setup run test check format demo bench bench-train clean

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Tests that start whole stacks wait for much and come first, so that the small ones fill the gaps to the end.
TESTS := tests/e2e tests/integration/local_stack tests/integration/trainer_worker tests/integration tests/unit \
	tests/gpu tests/architecture

help:  ## Say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## Create .venv and install everything (only what changed)

$(READY): pyproject.toml constraints.txt scripts/setup
	@scripts/setup $(VENV)
	@touch $@

run: $(READY)  ## Start the whole stack; options: make run ARGS="--port 9000 --state DIR"
	@$(BIN)/adaptive-moe up $(ARGS)

test: $(READY)  ## Run every test against real Postgres and Valkey; options: make test ARGS="tests/unit -k gate"
	@scripts/chromium
ifdef ARGS
	$(BIN)/python -m pytest $(ARGS)
else
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder $(TESTS)
endif

check: $(READY)  ## Format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)  ## Put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: $(READY)  ## Rebuild the demo base model, experts, router, graph and calibration (about 45 minutes on two cores)
	$(BIN)/adaptive-moe demo build $(ARGS)

bench: $(READY)  ## Measure speed and memory against peers and limits (long; writes benchmarks/results)
	$(BIN)/python -m benchmarks.decode_prefill --shape S --rounds 7 $(ARGS)
	$(BIN)/python -m benchmarks.decode_prefill --shape M --rounds 3 --new-tokens 16 $(ARGS)
	$(BIN)/python -m benchmarks.ragged
	$(BIN)/python -m benchmarks.many_experts
	$(BIN)/python -m benchmarks.adapter_loading
	$(BIN)/python -m benchmarks.hop
	$(BIN)/python -m benchmarks.kill_cycles
	$(BIN)/python -m benchmarks.creation_kills
	$(BIN)/python -m benchmarks.trace_import
	$(BIN)/python -m benchmarks.trace_overhead
	$(BIN)/python -m benchmarks.trace_statistics
	AMOE_STORM_S=60 $(BIN)/python -m pytest tests/e2e/test_replicas.py

bench-train: $(READY)  ## Measure training against a bare PEFT script, and how soon jobs start and go on after a kill
	$(BIN)/python -m benchmarks.training $(ARGS)
	$(BIN)/python -m benchmarks.job_latency

clean:  ## Remove caches, the state folder and the virtual environment
	@if [ -x $(BIN)/adaptive-moe ]; then $(BIN)/adaptive-moe down --erase; fi
	rm -rf $(VENV) .state build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
