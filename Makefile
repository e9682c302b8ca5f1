# Everything a developer runs. `make` lists the targets; each does the set-up it needs, once.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# Dependencies are pinned, the build backend with them; hence no isolated, unpinned build.
INSTALL := $(PIP) install --constraint constraints.txt
PINS := pyproject.toml constraints.txt
# Tests run in as many processes as there are cores. More than 8 gain nothing: then the longest test
# takes as long as all others. A group (marker xdist_group) stays in one process, for what it shares.
PARALLEL := -n auto --maxprocesses 8 --dist loadgroup

.PHONY: help run demo test bench check check-pages format generate docs changelog clean mutation clients \
	verify-tlc verify-nightly
.DEFAULT_GOAL := help

help:
	@echo "make run        start the bridge on the embedded emulator (ARGS='--port 9000' adds flags)"
	@echo "make demo       see what three policies make of lost connections (ARGS='--html demo.html')"
	@echo "make test       run the tests, on every core (ARGS='tests/wire -k chunked' selects, -n0: on one)"
	@echo "make bench      measure against floors (ARGS='--rounds 1 --only delta300 --even-if-busy')"
	@echo "make clients    run client libraries through the bridge (ARGS='--only LangChain' selects); installs them"
	@echo "make check      linter, formatter, types, import contracts, generated files, documentation"
	@echo "make format     format the code and apply the linter's safe fixes"
	@echo "make generate   write the files that are generated from the code"
	@echo "make docs       build the documentation into docs/_build/html"
	@echo "make check-pages  look at each page in Chromium: nothing cut off, at two widths"
	@echo "make changelog  show what the fragments in changes/ will say in CHANGELOG.md"
	@echo "make verify-nightly  the slower suites: larger bounds, mutants, ten million events, Autobahn"
	@echo "make verify-tlc compare verify's explorer with TLC, which needs Java (part of the above)"
	@echo "make mutation   mutate the function bodies of recovery/ and admission/ (part of the above)"
	@echo "make clean      remove what builds, tools and tests left behind"

# One simple command, so that make runs the bridge itself and signals reach it.
run: $(VENV)/.ready-to-run
	@$(BIN)/bridgecore serve $(ARGS)

demo: $(VENV)/.ready-to-run
	@$(BIN)/bridgecore demo $(ARGS)

# The tests start hundreds of processes, each faster with compiled modules at hand: so they are kept,
# whatever the environment says.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(VENV)/.ready-to-develop
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

# On a machine that does nothing else: it refuses to report on a busy one.
bench: $(VENV)/.ready-to-develop
	$(BIN)/python -m benchmarks.throughput $(ARGS)

# It installs other people's libraries, in build/clients, and needs Node.js and npm.
clients: $(VENV)/.ready-to-develop
	$(BIN)/python tests/clients/run.py $(ARGS)

check: $(VENV)/.ready-to-develop
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check
	$(BIN)/sphinx-build --fail-on-warning --keep-going --nitpicky --quiet docs docs/_build/html

format: $(VENV)/.ready-to-develop
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

generate: $(VENV)/.ready-to-develop
	$(BIN)/python docs/generate.py

docs: generate
	$(BIN)/sphinx-build --fail-on-warning --keep-going --nitpicky --quiet docs docs/_build/html

# Where Chromium is not installed, this says so and succeeds.
check-pages: $(VENV)/.ready-to-develop
	$(BIN)/sphinx-build --fail-on-warning --keep-going --nitpicky --quiet docs docs/_build/html
	$(BIN)/python docs/check_pages.py $(ARGS)

changelog: $(VENV)/.ready-to-develop
	$(BIN)/towncrier build --draft

# Everything here is reported with its figures, and stops at the first that does not hold.
verify-nightly: $(VENV)/.ready-for-nightly
	$(BIN)/bridgecore verify --bounds nightly
	$(BIN)/bridgecore verify --mutants --report docs/data/mutants.json
	$(BIN)/bridgecore simulate --conversations 23000 --turns 20 --faults 3 --seed 77
	$(BIN)/bridgecore simulate --conversations 960 --turns 20 --faults 3 --warm
	$(BIN)/bridgecore simulate --conversations 1280 --turns 20 --faults 3 --seed 77 --replicas 3
	$(BIN)/python tests/autobahn/run.py
	$(BIN)/python tests/mutation/run.py
	$(BIN)/python -m tests.tlc.run
	$(BIN)/python benchmarks/continuity.py
	$(BIN)/python -m benchmarks.replicas --only losses
	$(BIN)/python -m pytest --timeout 3600 tests/docs/test_commands.py --full
	$(BIN)/python docs/generate.py --check  # fails if the mutants changed a page: make generate
	$(MAKE) check-pages

# A second opinion on the explorer. It names what is missing if there is no Java.
verify-tlc: $(VENV)/.ready-for-nightly
	$(BIN)/python -m tests.tlc.run $(ARGS)

mutation: $(VENV)/.ready-for-nightly
	$(BIN)/python tests/mutation/run.py

clean:
	rm -rf build dist docs/_build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage*
	find bridgecore adapters tests docs -name __pycache__ -type d -prune -exec rm -rf {} +

# Set-up. The stamps are younger than the pins they were made from; progress goes to standard error
# because the first line that `make run` prints on standard output is the bridge's.

$(VENV)/.ready-to-run: $(PINS) | $(BIN)/python
	@echo "setting up $(VENV) ..." >&2
	@$(INSTALL) hatchling >&2
	@$(INSTALL) --no-build-isolation --editable '.[cli]' >&2
	@touch $@

$(VENV)/.ready-to-develop: $(PINS) | $(BIN)/python
	@echo "setting up $(VENV) for development ..." >&2
	@$(INSTALL) hatchling >&2
	@$(INSTALL) --no-build-isolation --editable '.[dev]' >&2
	@touch $(VENV)/.ready-to-run $@

$(VENV)/.ready-for-nightly: $(VENV)/.ready-to-develop
	@echo "setting up $(VENV) for the slower suites ..." >&2
	@$(INSTALL) --no-build-isolation --editable '.[nightly]' >&2
	@touch $@

# PYTHON=... names the interpreter to use, and then no other is tried.
$(BIN)/python:
	@for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11); do \
	    if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        "$$python" -m venv --clear $(VENV) >&2 && exit 0; \
	        rm -rf $(VENV); \
	        echo "$$python could not make a virtual environment: is its venv module installed" \
	            "(on Debian and Ubuntu the package python3-venv)?" >&2; \
	        exit 1; \
	    fi; \
	done; \
	echo "bridgecore needs Python 3.11 or newer, tried: $(or $(PYTHON),python3 and python3.14 to" \
	    "python3.11). To name one: make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; \
	exit 1
