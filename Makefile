# What can be done here; `make` alone lists it. A first run sets up what it needs, a second one finds it there.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help run test slow dev lint format lock bench soak mutants clean

PYTHON_IN_VENV := .venv/bin/python
RUN_READY := .venv/.ready-to-run
TEST_READY := .venv/.ready-to-test
SLOW_READY := .venv/.ready-for-slow

# `make run PORT=9000 DATA=some/folder`; what is not given has the default of docs/settings.md.
options = $(if $(HOST),--host $(HOST)) $(if $(PORT),--port $(PORT)) $(if $(DATA),--data "$(DATA)") \
          $(if $(REDIS),--redis "$(REDIS)")

help: ## List what can be done.
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(RUN_READY) ## Start everything: Valkey, gateway, workers. PORT=9000, DATA=folder, MODULES="package.module" are options.
	@exec .venv/bin/outlast up $(options) $(MODULES)

test: $(TEST_READY) $(if $(SLOW),$(SLOW_READY)) ## Format, lint, types, layers, Python, JavaScript and browser tests. SLOW=1 adds the slow ones.
	@SLOW="$(SLOW)" exec .ci/test

dev: $(TEST_READY) ## Tests of one room in seconds: make dev ROOM=store (or hub, worker, client_js, ...).
	@exec .ci/dev "$(ROOM)"

lint: $(TEST_READY) ## Format and lint check, types, layers, and the types of client_js.
	@SLOW= exec .ci/test lint

format: $(TEST_READY) ## Format the Python code and mend what the linter can.
	@$(PYTHON_IN_VENV) -m ruff check --fix-only --quiet .
	@$(PYTHON_IN_VENV) -m ruff format .

lock: ## Write the lock files anew from pyproject.toml. UPGRADE=1 takes the newest versions.
	@UPGRADE="$(UPGRADE)" .ci/setup lock

bench: $(TEST_READY) ## Run the benchmarks, or one: make bench ONE=delivery.
	@for script in benchmarks/$(or $(ONE),*).py; do \
		[ "$$(basename "$$script")" = __init__.py ] || { echo "== $$script"; $(PYTHON_IN_VENV) "$$script"; }; \
	done

soak: $(TEST_READY) ## Kill, pause and cut everything under load for a while: make soak MINUTES=10. SEED=7 repeats a plan of faults.
	@exec $(PYTHON_IN_VENV) -m tests.chaos.soak --minutes $(or $(MINUTES),10) $(if $(SEED),--seed $(SEED))

mutants: $(TEST_READY) ## Take one check after the other out of a copy; fails if the tests stay green. ONE="the nonce" for one.
	@exec $(PYTHON_IN_VENV) -m tests.mutants $(if $(ONE),"$(ONE)")

clean: ## Delete what was installed and built here. Data in .outlast stays.
	rm -rf .venv .cache client_js/node_modules deploy/cloudflare/node_modules dist build
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(RUN_READY): requirements-run.lock pyproject.toml .ci/setup
	@.ci/setup run
	@touch $@

$(TEST_READY): requirements.lock pyproject.toml client_js/package-lock.json deploy/cloudflare/package-lock.json .ci/setup
	@.ci/setup test
	@touch $@ $(RUN_READY)

$(SLOW_READY): requirements-slow.lock $(TEST_READY)
	@.ci/setup slow
	@touch $@
