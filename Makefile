# make help says what there is. Everything runs from a fresh clone.

PY := .venv/bin/python
PYTEST := $(PY) -m pytest -q
# A level of its own for each test: nothing runs twice, nothing is left out.
IN_CHECK := not (netns or interop or kernel or slow or long)
IN_TEST := (netns or interop or slow) and not (kernel or long)
IN_LONG := long and not kernel
# Two labs at a time share two cores, and a timer can starve. What failed runs
# once more, alone; both results are printed, and the second one counts.
ALONE := $(PYTEST) --last-failed --last-failed-no-failures none
# pytest's 5: no test has this mark yet.
OR_NONE := || [ $$? -eq 5 ]

FUZZ_SECONDS ?= 5
# 0: other inputs each time.
FUZZ_SEED ?= 0
CHAOS_EVENTS ?= 1000
SOAK_MINUTES ?= 60
# Options of `python -m bench`, such as --quick, or --only udp,pair.
BENCH ?=

.DEFAULT_GOAL := help
.PHONY: help setup venv lint types contracts unit check namespaces test \
	rows long test-long test-all test-kernel demo bench fuzz chaos soak \
	rpm clean

help: ## say what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) \
		| expand -t 20

setup: ## list, then install, the Debian packages that are missing (root)
	@tools/setup.sh

venv: .venv/.made ## make .venv with the project and its tools

.venv/.made: pyproject.toml tools/requirements.txt tools/venv.sh \
		tools/packages.txt
	@tools/setup.sh --if-root
	@tools/venv.sh

lint: .venv/.made
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: .venv/.made
	.venv/bin/mypy

contracts: .venv/.made
	.venv/bin/lint-imports

unit: .venv/.made
	$(PYTEST) -n 2 -m "$(IN_CHECK)"

check: lint types contracts unit ## lint, types, contracts, unit tests (1 min)

namespaces: .venv/.made
	$(PYTEST) -n 2 --dist loadfile -m "$(IN_TEST)" \
		|| $(ALONE) -m "$(IN_TEST)"

rows: .venv/.made
	@$(PY) -m tests.hostile

test: setup check namespaces fuzz rows ## everything but the long tests (20 min)

long: .venv/.made
	$(PYTEST) -n 2 --dist loadfile -m "$(IN_LONG)" \
		|| $(ALONE) -m "$(IN_LONG)"
	HYPOTHESIS_PROFILE=ci $(PYTEST) -n 2 -m "$(IN_CHECK)" tests/property $(OR_NONE)

test-long: setup long test-kernel ## what test-all has beyond test
	@$(MAKE) fuzz FUZZ_SECONDS=60

test-all: test test-long ## every test there is (1 h)

test-kernel: .venv/.made ## the ovpn driver, in a virtual machine
	@tools/setup.sh --if-root
	$(PYTEST) -m kernel -rP || $(ALONE) -m kernel -rP

demo: .venv/.made ## the main job in a lab: tunnel, crash, no leak
	@tools/setup.sh --if-root
	$(PY) -m lab demo

bench: .venv/.made ## measure, into bench/results/ (20 min)
	@tools/setup.sh --if-root
	@$(PY) -c 'import matplotlib' 2>/dev/null \
		|| $(PY) -m pip install -q 'matplotlib>=3.6' \
		|| echo 'no matplotlib: there will be no picture'
	$(PY) -m bench $(BENCH)

fuzz: .venv/.made ## FUZZ_SECONDS a fuzz target
	$(PY) -m tests.fuzz --seconds $(FUZZ_SECONDS) --seed $(FUZZ_SEED)

chaos: .venv/.made ## CHAOS_EVENTS faults under traffic
	$(PY) -m tests.chaos --events $(CHAOS_EVENTS)

soak: .venv/.made ## SOAK_MINUTES of rekeys, traffic and faults
	$(PY) -m tests.soak --minutes $(SOAK_MINUTES)

rpm: setup ## build the packages into dist/
	rpm/build.sh

clean: ## remove what was made here
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache .coverage build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
