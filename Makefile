# The commands of this project. `make help` lists them.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/dev.txt
READY := $(VENV)/.ready
PEERS := .venv-peers
OLDEST := .venv-oldest
SPARK := .spark
FRAMEWORKS := .venv-frameworks
# Tests that must pass with every version of Python and of our dependencies.
CONTRACT_TESTS := $(addprefix tests/, test_import.py test_user_story.py test_drop_in.py test_context.py test_testing.py \
  cli/test_config.py cli/test_help.py cli/test_notify.py cli/test_run.py cli/test_status.py \
  io/test_settings.py io/test_service.py io/test_services.py io/alerts/test_dbus.py io/alerts/test_remote.py \
  io/logs/test_jsonl.py io/logs/test_pipeline.py io/logs/test_seam.py \
  io/tracking/test_isolation*.py io/tracking/test_guests.py io/tracking/test_manifest.py io/tracking/test_nesting.py io/tracking/test_redaction.py \
  io/tracking/test_seam.py io/tracking/test_values.py \
  io/tracking/test_write_behind.py workers/test_processes.py)
PYTHONS ?= 3.11 3.12 3.13
# WITHOUT="or slow" also skips the slow ones.
FUZZ_SECONDS ?= 600
DOCS := .venv-docs
UV := .venv-uv
DEBIAN_PACKAGES := dbus dunst xvfb libnotify-bin imagemagick fonts-dejavu-core chromium

# uv lets Python compile the installed packages. If Python must not write bytecode, each process compiles MLflow again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(UV)/.ready: requirements/uv.txt
	@$(PYTHON) -m venv --clear $(UV)
	@$(UV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $< \
	  || echo "there is no uv for this machine: pip is used, which takes longer"
	@touch $@

# $(call install-lock,PYTHON,LOCK) uses uv, within seconds; if uv is missing or fails, pip, within minutes.
# The lock is complete; without --no-deps an old pip looks for a newer coverage for pytest-cov's coverage[toml].
install-lock = { [ -x $(UV)/bin/uv ] && $(UV)/bin/uv pip install --quiet --python $(1) --no-deps --require-hashes -r $(2); } \
  || $(1) -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r $(2)

$(READY): $(LOCK) pyproject.toml | $(UV)/.ready
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version + "; choose another one with make PYTHON=python3.12")'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "installing the locked requirements into $(VENV)"
	@$(call install-lock,$(BIN)/python,$(LOCK))
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

.PHONY: install
install: $(READY) ## Create .venv with the locked requirements and the package

.PHONY: demo
demo: $(READY) ## Tune, train and register a real model inside the global context
	@$(BIN)/autogen-team run examples/train.py

# One worker runs all tests of a module, because they share clusters, servers and browsers. The slowest modules come first.
BY_MODULE := --dist loadfile --no-loadscope-reorder
# Twice as many workers as cores, because tests often wait for processes, servers and deadlines.
PYTEST := $(BIN)/python -m pytest -n 4 $(BY_MODULE)

.PHONY: test
test: $(READY) ## Run all tests: about ten minutes on two cores; PYTEST_ARGS="-k runs -x" selects some
	@$(PYTEST) $(PYTEST_ARGS)

.PHONY: test-quick
test-quick: $(READY) ## Run the tests that need no process, server, browser or desktop: a minute
	@$(PYTEST) -m quick $(PYTEST_ARGS)

.PHONY: test-bare
test-bare: $(READY) ## Run the tests that depend on the environment in an empty one, with signals ignored as in a background job
	@trap '' INT HUP QUIT; env -i HOME="$$HOME" PATH="$$PATH" TERM=dumb $(PYTEST) tests/cli/test_run.py tests/cli/supervisor/test_terminal.py \
	  tests/io/logs/test_bars.py tests/io/logs/test_faults.py tests/io/tracking/test_ending.py tests/io/tracking/test_runs.py $(PYTEST_ARGS) </dev/null

.PHONY: test-loguru
test-loguru: $(READY) ## Run loguru's own tests inside LoggerService; LOGURU is a checkout of its tag
	@$(BIN)/python .ci/loguru_suite.py $(LOGURU)

# Uses pip, because only pip finds a PyTorch on this machine; PyPI's own for Linux includes 3 GB of CUDA.
$(FRAMEWORKS)/.ready: requirements/frameworks.txt pyproject.toml
	@$(PYTHON) -m venv --clear $(FRAMEWORKS)
	@echo "installing the frameworks into $(FRAMEWORKS): a few minutes"
	@$(FRAMEWORKS)/bin/python -m pip install --quiet --disable-pip-version-check -r $< --editable . 2>&1 | { grep -v "^WARNING: Location" || true; }
	@touch $@

.PHONY: test-frameworks
test-frameworks: $(FRAMEWORKS)/.ready ## Run jobs of a dozen frameworks with and without autogen-team: ten minutes, plus the installation
	@$(FRAMEWORKS)/bin/python -m pytest -n 2 --confcutdir tests/frameworks -p no:cacheprovider tests/frameworks $(PYTEST_ARGS)

.PHONY: test-kills
test-kills: $(READY) ## Kill job, agent or both at 200 moments, and look for lost data: 15 minutes; KILLS=N for another number
	@KILLS="$${KILLS:-200}" $(BIN)/python -m pytest -n 4 tests/io/tracking/test_agent.py tests/io/tracking/test_artifacts.py -k kills_at_any_moment $(PYTEST_ARGS)

.PHONY: test-claims
test-claims: $(READY) ## Start a job twice at the same moment, 50 times on each kind of store: ten minutes
	@MEETINGS=25 $(BIN)/python -m pytest -n 2 tests/io/tracking/test_claims.py -k two_claimants $(PYTEST_ARGS)

.PHONY: test-fresh
test-fresh: $(READY) ## Run all tests without fork servers: each process is a new interpreter, which takes twice as long
	@FRESH_PROCESSES=1 $(PYTEST) $(PYTEST_ARGS)

.PHONY: coverage
coverage: $(READY) ## Run all tests with coverage of all processes, which takes three times as long
	@rm -f .coverage .coverage.*
	@FRESH_PROCESSES=1 $(PYTEST) --cov --cov-report= $(PYTEST_ARGS)
	@$(BIN)/python -m coverage report --fail-under=95

.PHONY: wheel
wheel: $(READY) ## Build the wheel into dist/
	@rm -rf dist
	@$(BIN)/hatchling build --target wheel

.PHONY: dist
dist: $(READY) ## Build the sdist, and the wheel from it, into dist/
	@rm -rf dist
	@$(BIN)/python -m build --no-isolation >/dev/null
	@ls dist/*

.PHONY: test-sdist
test-sdist: dist ## Run the quick tests from the unpacked sdist: two minutes
	@unpacked=$$(mktemp -d) && trap 'rm -rf "$$unpacked"' EXIT && tar -xzf dist/*.tar.gz -C "$$unpacked" --strip-components=1 \
	  && cd "$$unpacked" && PYTHONPATH="$$unpacked/src" $(CURDIR)/$(PYTEST) -m quick -p no:cacheprovider $(PYTEST_ARGS)

.PHONY: release
release: $(READY) ## Build the files for docs/release.md, if tag, version, CHANGELOG and tree agree
	@$(BIN)/python .ci/release_check.py
	@$(MAKE) --no-print-directory dist

# A venv tests the wheel, not the working tree: $(call install-wheel,VENV)
install-wheel = $(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-index --force-reinstall dist/*.whl \
  && $(1)/bin/python -c 'import autogen_team; print("testing", autogen_team.__file__)'

$(OLDEST)/.ready: requirements/oldest.txt | $(UV)/.ready
	@$(PYTHON) -m venv --clear $(OLDEST)
	@$(call install-lock,$(OLDEST)/bin/python,$<)
	@touch $@

.PHONY: test-oldest
test-oldest: $(OLDEST)/.ready wheel ## Test the wheel with the oldest supported version of each dependency
	@$(call install-wheel,$(OLDEST))
	@# Help texts differ between versions of typer; the oldest venv has no server and no PostgreSQL.
	@FRESH_PROCESSES=1 $(OLDEST)/bin/python -m pytest -n 4 $(BY_MODULE) -p no:cacheprovider -m "not (desktop $(WITHOUT))" $(CONTRACT_TESTS) \
	  -k "not server and not postgres and not class_of_the_store and not golden_file" $(PYTEST_ARGS)

.venv-3.%/.ready: $(LOCK) | $(UV)/.ready
	@"$$(.ci/python-of 3.$*)" -m venv --clear $(@D)
	@echo "installing the locked requirements into $(@D)"
	@$(call install-lock,$(@D)/bin/python,$<)
	@touch $@

# $(call on-each-python,TARGET) makes the target for each installed Python, with $$version in its name
on-each-python = @for version in $(PYTHONS); do \
	  if [ -z "$$(.ci/python-of $$version)" ]; then echo "no supported Python $$version is installed: skipped"; continue; fi; \
	  $(MAKE) --no-print-directory $(1) || exit 1; \
	done

.PHONY: test-all
test-all: wheel ## Test the wheel on each supported Python that is installed; TESTS=tests for all tests
	$(call on-each-python,test-python ON=.venv-$$version)

TESTS := $(CONTRACT_TESTS)
.PHONY: test-python
test-python: $(ON)/.ready
	@$(call install-wheel,$(ON))
	@$(ON)/bin/python -m pytest -n 4 $(BY_MODULE) -p no:cacheprovider --ignore tests/browser -m "not (desktop $(WITHOUT))" $(TESTS) $(PYTEST_ARGS)

.PHONY: venvs
venvs: $(OLDEST)/.ready
	$(call on-each-python,.venv-$$version/.ready)

.PHONY: fuzz
fuzz: $(READY) ## Feed random input to settings, journals and the redactor for FUZZ_SECONDS (600)
	@end=$$(($$(date +%s) + $(FUZZ_SECONDS))); rounds=0; \
	while [ $$(date +%s) -lt $$end ]; do \
	  $(BIN)/python -m pytest -q --no-header -p no:cacheprovider --hypothesis-profile fuzz --override-ini timeout=0 tests/fuzz $(PYTEST_ARGS) || exit 1; \
	  rounds=$$((rounds + 1)); \
	done; echo "$$rounds rounds of 500 examples for each property"

# Not in .venv, because MLflow would load it there.
$(SPARK)/.ready: requirements/spark.txt $(READY)
	@echo "installing Spark into $(SPARK): a download of 450 MB, a few minutes"
	@rm -rf $(SPARK)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --target $(SPARK) -r $<
	@touch $@

.PHONY: java
java:
	@"$${JAVA_HOME:+$$JAVA_HOME/bin/}java" -version >/dev/null 2>&1 \
	  || { echo "no Java found: Spark 4 needs Java 17 or newer, on the PATH or in JAVA_HOME"; exit 1; }

.PHONY: test-spark
test-spark: java $(SPARK)/.ready ## Run the tests on a local Spark, which needs Java
	@PYTHONPATH=$(CURDIR)/$(SPARK) $(BIN)/python -m pytest tests/workers/test_spark.py $(PYTEST_ARGS)

.PHONY: check
check: format-check lint types layers security examples ## Check format, lint, types, import layers, security and documented examples

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
	@# pyright does not follow an editable install by itself.
	@found=$$(PYTHONPATH=$(CURDIR)/src $(BIN)/pyright --pythonpath $(BIN)/python --verifytypes autogen_team --ignoreexternal) \
	  && grep completeness <<<"$$found" || { echo "$$found"; exit 1; }

.PHONY: layers
layers: $(READY)
	@$(BIN)/lint-imports

.PHONY: security
security: $(READY)
	@$(BIN)/bandit --quiet --recursive --configfile pyproject.toml src

.PHONY: audit
audit: $(READY) ## Check the locked requirements, except the oldest, for known vulnerabilities; needs the network
	@$(BIN)/python .ci/audit.py $(LOCK) requirements/docs.txt requirements/spark.txt requirements/uv.txt

.PHONY: examples
examples: $(READY)
	@# In this order, because Ray and Dask, in docs, leave threads behind that would break a fork in src.
	@$(BIN)/python -m pytest -q src README.md docs

.PHONY: readme
readme: $(READY) ## Generate the settings and the command line in the reference
	@$(BIN)/python docs/settings_table.py
	@$(BIN)/python docs/cli_reference.py

$(DOCS)/.ready: requirements/docs.txt | $(UV)/.ready
	@$(PYTHON) -m venv --clear $(DOCS)
	@$(call install-lock,$(DOCS)/bin/python,$<)
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
	else echo "the peers could not be installed: their rows will say so"; fi

.PHONY: bench-peers
bench-peers: $(PEERS)/.ready ## Create .venv-peers with the peers of the benchmarks

.PHONY: bench
bench: $(READY) bench-peers ## Run the benchmarks, with peers for comparison
	@for script in benchmarks/bench_*.py; do echo; echo "== $$script"; $(BIN)/python $$script || exit 1; done

LOCKED := $(UV)/bin/uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --no-header --quiet
.PHONY: lock
lock: $(UV)/.ready ## Resolve the requirements again
	$(LOCKED) pyproject.toml --extra alerts --extra dask --extra gpu --extra otel --extra ray --extra ui --group dev --output-file $(LOCK)
	$(LOCKED) pyproject.toml --extra alerts --extra dask --extra gpu --extra ray requirements/oldest.in \
	  --resolution lowest-direct --output-file requirements/oldest.txt
	echo "pyspark>=4" | $(LOCKED) - --output-file requirements/spark.txt
	$(LOCKED) --group docs --output-file requirements/docs.txt
	echo "uv" | $(LOCKED) - --output-file requirements/uv.txt

.PHONY: system-deps
system-deps: ## Install the Debian packages for the desktop and browser tests with apt-get, as root
	@missing=$$(for package in $(DEBIAN_PACKAGES); do dpkg -s $$package >/dev/null 2>&1 || echo $$package; done); \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then echo "install these packages as root:" $$missing; exit 1; fi; \
	echo "installing with apt-get:" $$missing; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing >/dev/null

.PHONY: clean
clean: ## Remove the files that the other targets create
	@rm -rf $(VENV) $(VENV)-* $(SPARK) .cache artifacts build dist site mlruns mlartifacts mlflow.db .coverage .coverage.* .hypothesis .*_cache
