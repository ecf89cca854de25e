# `make nano` trains a reasoning model on this machine; `make test` runs every test. Both install what they need first.
# Further arguments go through ARGS: make nano ARGS="--runs /tmp/runs", make test ARGS="-k recipe".
# Tests run in WORKERS processes.
.POSIX:
.SUFFIXES:
# Without compiled modules every process compiles PyTorch's and transformers' anew, 16 s for each stage of a chain.
unexport PYTHONDONTWRITEBYTECODE

ARGS =
WORKERS = 2
BIN = .venv/bin

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

nano: ## the whole R1 chain in miniature: base model in, reasoning model and student out
	@sh scripts/bootstrap.sh
	$(BIN)/zero2r1 run recipes/nano/r1.yaml $(ARGS)

test: dev ## every test (under half an hour on two cores)
	@sh scripts/system-packages.sh
	@sh scripts/run-tests.sh $(BIN)/python -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)
	@WORKERS=$(WORKERS) sh scripts/test-vllm.sh

vllm: dev ## the tests of the vLLM engine, on its CPU build (part of `make test`)
	@WORKERS=$(WORKERS) sh scripts/test-vllm.sh $(ARGS)

unit: dev ## the unit tests (under a minute on two cores)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not slow and not integration" $(ARGS)

check: dev ## format, lint, types, import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: dev ## the documentation as a site, in site/ (open site/index.html)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet $(ARGS)

dev: ## install for development into .venv
	@sh scripts/bootstrap.sh dev,gguf,lang,puzzles,qlora,track,harness,cluster

constraints: dev ## resolve the pinned versions of constraints/*.txt anew
	@$(BIN)/python -m pip install --quiet uv
	PATH="$$PWD/$(BIN):$$PATH" sh scripts/compile-constraints.sh $(ARGS)

.PHONY: help nano test vllm unit check docs dev constraints
