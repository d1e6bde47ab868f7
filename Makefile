# The commands of this project. `make help` lists them.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/dev.txt
READY := $(VENV)/.ready
PEERS := .venv-peers
OLDEST := .venv-oldest
DOCS := .venv-docs
DEBIAN_PACKAGES := dbus dunst xvfb libnotify-bin imagemagick fonts-dejavu-core chromium

.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): $(LOCK) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version + "; say which one with make PYTHON=python3.12")'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing the locked requirements into $(VENV)"
	@# The lock is complete; without --no-deps an old pip looks for a newer coverage for pytest-cov's coverage[toml].
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $(LOCK)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: install
install: $(READY) ## Make .venv with the locked requirements and the package

.PHONY: demo
demo: $(READY) ## Tune, train and register a real model inside the global context
	@$(BIN)/autogen-team run examples/train.py

.PHONY: test
test: $(READY) system-deps ## Run the whole test suite, with coverage
	@rm -f .coverage .coverage.*
	@$(BIN)/python -m pytest -n 2 --dist worksteal --cov --cov-report= $(PYTEST_ARGS)
	@$(BIN)/python -m coverage report --fail-under=95

$(OLDEST)/.ready: requirements/oldest.txt
	@$(PYTHON) -m venv --clear $(OLDEST)
	@$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $<
	@touch $@

.PHONY: test-oldest
test-oldest: $(OLDEST)/.ready ## Run the contract tests on the oldest MLflow that we support
	@PYTHONPATH=$(CURDIR)/src $(OLDEST)/bin/python -m pytest -n 2 --dist worksteal -p no:cacheprovider \
	  $(wildcard tests/io/tracking/test_seam.py tests/io/tracking/test_isolation*.py) \
	  tests/io/tracking/test_write_behind.py tests/io/tracking/test_values.py tests/io/tracking/test_nesting.py -k "not server and not postgres and not uri_stays" $(PYTEST_ARGS)

.PHONY: check
check: format-check lint types layers examples ## Check format, lint, types, import layers and documented examples

.PHONY: format
format: $(READY) ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix-only --quiet .

.PHONY: format-check
format-check: $(READY)
	@$(BIN)/ruff format --check .

.PHONY: lint
lint: $(READY)
	@$(BIN)/ruff check .

.PHONY: types
types: $(READY)
	@$(BIN)/mypy
	@$(BIN)/pyright

.PHONY: layers
layers: $(READY)
	@$(BIN)/lint-imports

.PHONY: examples
examples: $(READY)
	@$(BIN)/python -m pytest -q README.md docs src

.PHONY: readme
readme: $(READY) ## Write the settings and the command line into the README and the reference
	@$(BIN)/python docs/settings_table.py
	@$(BIN)/python docs/cli_reference.py

$(DOCS)/.ready: requirements/docs.txt
	@$(PYTHON) -m venv --clear $(DOCS)
	@$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $<
	@touch $@

.PHONY: docs
docs: $(DOCS)/.ready ## Build the documentation site into site/, and check its links
	@rm -rf site
	@$(DOCS)/bin/zensical build --strict --clean -f mkdocs.yml
	@$(DOCS)/bin/python docs/check_site.py site

$(PEERS)/.ready: requirements/peers.txt
	@echo "installing the peers of the benchmarks into $(PEERS)"
	@if $(PYTHON) -m venv --clear $(PEERS) \
	  && $(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r $<; then touch $@; \
	else echo "could not install them: their rows will say so"; fi

.PHONY: bench-peers
bench-peers: $(PEERS)/.ready ## Make .venv-peers with what the benchmarks compare us with

.PHONY: bench
bench: $(READY) bench-peers ## Measure ourselves beside our peers
	@for script in benchmarks/bench_*.py; do echo; echo "== $$script"; $(BIN)/python $$script || exit 1; done

.PHONY: lock
lock: ## Resolve the requirements anew (needs uv)
	uv pip compile pyproject.toml --extra alerts --extra dask --extra gpu --extra ray --extra ui --group dev --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-annotate --no-header --quiet --output-file $(LOCK)
	uv pip compile pyproject.toml requirements/oldest.in --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-annotate --no-header --quiet --output-file requirements/oldest.txt
	uv pip compile --group docs --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-annotate --no-header --quiet --output-file requirements/docs.txt

.PHONY: system-deps
system-deps: ## Install the Debian packages of the desktop tests, where that may be done
	@missing=$$(for package in $(DEBIAN_PACKAGES); do dpkg -s $$package >/dev/null 2>&1 || echo $$package; done); \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "installing" $$missing; \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing; } >/dev/null 2>&1 \
	    || echo "could not install them: the tests that need them will be skipped"; \
	else echo "not installed (tests that need them will be skipped):" $$missing; fi

.PHONY: clean
clean: ## Remove what the other targets make
	@rm -rf $(VENV) $(OLDEST) $(PEERS) $(DOCS) .cache artifacts build dist site mlruns mlartifacts mlflow.db .coverage .coverage.* .hypothesis .*_cache
