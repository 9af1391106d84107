# Every target works on a bare Debian machine with python3, pip, npm and make; nothing is installed by hand.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PY     := $(BIN)/python
POINTS ?= 50000
KILLS  ?= 200
SEED   ?=
# Files of tests at a time, each with servers of its own; WORKERS=0 runs them one after the other in this process.
WORKERS ?= 2
BESIDE := -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# Where it is set, every interpreter that a test starts compiles the tree anew, and pytest every test.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup demo up down test soak unit lint format bench docs constraints clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(VENV)/.ready ## make the environment and fetch the real servers (once)

# Without ensurepip, so that Debian's python3 is enough without python3-venv; the system's pip fills the environment.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv --without-pip --clear $(VENV)
	$(PYTHON) -m pip --python $(PY) install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(PY) -m sandbox fetch
	@touch $@

demo: setup ## back up a real 3-node cluster, prove it, restore it to 2 nodes, compare (POINTS=341479 for all words)
	$(PY) -m deployments.demo --points $(POINTS)

up: setup ## start sandbox, Prefect server, worker and deployments; prints the addresses
	$(PY) -m deployments.up

down: ## stop what `make up` started
	@test ! -x $(PY) || $(PY) -m sandbox down

test: setup ## everything: lint, unit, contract, and all tests on real servers
	$(MAKE) lint
	$(PY) -m pytest $(BESIDE)

soak: setup ## kill backups and prunes at random moments over real servers (KILLS=200 SEED=any)
	HYPOTHESIS_PROFILE=thorough $(PY) -m pytest tests/unit -q
	SOAK_KILLS=$(KILLS) SOAK_SEED=$(SEED) $(PY) -m pytest -m soak -s

unit: setup ## the unit layer only, no servers
	$(PY) -m pytest tests/unit -q $(BESIDE)

lint: setup ## ruff and mypy, as CI runs them
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## let ruff format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup ## measure against the raw operations; writes docs/numbers.md
	$(PY) -m benchmarks

docs: setup ## generate docs/settings.md from the settings model
	$(PY) -m ferry settings --markdown > docs/settings.md

constraints: ## pin every package anew (maintainers)
	$(PYTHON) -m venv --without-pip --clear $(VENV)
	$(PYTHON) -m pip --python $(PY) install --quiet -e '.[dev]'
	$(PYTHON) -m pip --python $(PY) freeze --exclude-editable | grep -v '^ferry' > constraints.txt

clean: down ## stop everything and remove what make made
	rm -rf $(VENV) .sandbox .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
