# Every target installs what it needs into .venv on its own. `make help` lists them.
PYTHON ?= python3
EXTRA ?= cpu
BIN := .venv/bin
INSTALLED := .venv/.installed
export PYTHONUNBUFFERED := 1

.DEFAULT_GOAL := help
.PHONY: help install demo extract train-head index evaluate search reindex test test-slow test-gpu bench-gpu lint types docs check clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRA),dev]'
	touch $@

install: $(INSTALLED) ## make .venv with the pinned dependencies (EXTRA=gpu for faiss-gpu)

demo: $(INSTALLED) ## the whole pipeline on the built-in data set, and one table at the end
	$(BIN)/python cli.py demo

extract: $(INSTALLED) ## stage 1: DATASET=name [VIDEOS=dir] [ANNOTATIONS=dir] [ARGS=...]
	$(BIN)/python cli.py extract --dataset '$(or $(DATASET),shapes)' $(if $(VIDEOS),--videos '$(VIDEOS)') \
	  $(if $(ANNOTATIONS),--annotations '$(ANNOTATIONS)') $(ARGS)

train-head index evaluate reindex: $(INSTALLED)
	$(BIN)/python cli.py $@ $(ARGS)
train-head: ## stage 2: train a head on the extracted features [ARGS="--head xpool"]
index: ## stage 3: build an index from the aligned embeddings [ARGS=...]
evaluate: ## stage 3: R@1/5/10, MdR, MnR [ARGS=--index]
reindex: ## stage 3: bring an index up to date with a corpus [ARGS="--corpus DIR"]

test: $(INSTALLED) ## the tests (a few minutes on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m 'not slow'

test-slow: $(INSTALLED) ## the slow tests: chaos, fuzz, full-size runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow --timeout=3000

test-gpu: $(INSTALLED) ## parity of every stage on a GPU (skips, with the reason, where there is none)
	$(BIN)/python -m pytest -rs tests/gpu -k "cuda or gpu"

bench-gpu: $(INSTALLED) ## every stage on a GPU in one table, bench-gpu.md
	$(BIN)/python benchmarks/bench_gpu.py --out bench-gpu.md

lint: $(INSTALLED) ## ruff, rules and formatting
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: $(INSTALLED) ## mypy
	$(BIN)/mypy cli.py pipeline dits_head tests benchmarks scripts

docs: $(INSTALLED) ## the documentation site in site/, links checked
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	PYTHONPATH=. $(BIN)/python scripts/commands_reference.py docs/reference/commands.md
	$(BIN)/zensical build --clean --strict

check: lint types docs test ## everything that CI runs, but for the sample of slow tests

clean: ## remove .venv and caches (never the workspace)
	rm -rf .venv site .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
