PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Threads of the model jobs: all cores, none left idle and none fought over.
export OMP_NUM_THREADS ?= $(shell nproc)
# Tests and checks never spend money: whatever keys the environment holds are not passed on.
CLEAN := env -u OPENAI_API_KEY -u OPENAI_BASE_URL -u OPENAI_MODEL -u MARKSCHEME_JUDGE_API_KEY \
         -u MARKSCHEME_JUDGE_BASE_URL -u MARKSCHEME_JUDGE_MODEL -u MARKSCHEME_JUDGE

.PHONY: help setup demo demo-control test fuzz check bench-builtin clean

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-14s %s\n", $$1, $$2}'

setup: $(VENV)/.ready  ## Create .venv with everything, from the lock

$(VENV)/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[server,train,demo,dev]'
	touch $@

demo: setup  ## Train a real small model on rubric rewards, from start to report (about ten minutes)
	$(CLEAN) $(BIN)/markscheme demo

demo-control: setup  ## The demo's training beside shuffled rewards, 3 seeds (slow, about an hour)
	$(CLEAN) $(BIN)/markscheme demo-control

test: setup  ## Run the tests
	$(CLEAN) $(BIN)/python -m pytest

fuzz: setup  ## Schemathesis against the running service (slow, about three minutes)
	$(CLEAN) $(BIN)/python -m pytest -m slow tests/server/api/test_schemathesis.py

check: setup  ## Lint, types, import contracts
	$(CLEAN) $(BIN)/ruff check services client tests benchmarks
	$(CLEAN) $(BIN)/mypy
	$(CLEAN) $(BIN)/lint-imports

bench-builtin: setup build/nltk  ## Quality of the builtin judge on 402 IFEval prompts (about a minute)
	$(CLEAN) NLTK_DATA=build/nltk/llama_index/core/_static/nltk_cache $(BIN)/python benchmarks/builtin_judge.py

# The official verifier's sentence splitter; this wheel is the package index's only copy of its data.
build/nltk:
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest build/nltk-wheel llama-index-core==0.14.25
	$(BIN)/python -m zipfile -e build/nltk-wheel/llama_index_core-*.whl $@.partial
	mv $@.partial $@

clean:  ## Remove what was built, the virtual environment excepted
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis
