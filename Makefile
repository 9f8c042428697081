# Everything runs from .venv in this checkout, which the first target that needs it creates.
.DEFAULT_GOAL := help
SHELL := /bin/sh
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export UV_HTTP_TIMEOUT := 20
# Images of containers forbid it. Tests start hundreds of processes: each would compile all modules anew.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help demo test check bench soak lock clean

help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' Makefile

# The first interpreter that runs and is new enough: a name on PATH may be a shim that fails.
$(STAMP): pyproject.toml requirements.lock
	@python=; for name in $(PYTHON) python3 python3.14 python3.13 python3.12 python3.11 python; do \
	  if "$$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    python=$$name; break; fi; done; \
	if [ -z "$$python" ]; then \
	  echo "Tollkeeper needs Python 3.11 or newer with venv; set PYTHON=/path/to/python3" >&2; exit 1; fi; \
	echo "creating $(VENV) with $$($$python --version)"; \
	"$$python" -m venv --clear $(VENV)
	@# uv takes 5 s for what takes pip a minute; where it cannot be had, or cannot reach what pip reaches, pip does it.
	@$(BIN)/python -m pip install --quiet 'uv<1' || echo 'no uv for this platform: pip does it'
	@with="--constraint requirements.lock --editable"; \
	if [ -x $(BIN)/uv ] && $(BIN)/uv pip install --quiet --python $(BIN)/python $$with '.[embedded,report,dev]'; then :; \
	elif $(BIN)/python -m pip install --quiet $$with '.[embedded,report,dev]'; then :; \
	else echo 'no embedded PostgreSQL for this platform: using the PostgreSQL on PATH'; \
	  $(BIN)/python -m pip install --quiet $$with '.[report,dev]'; fi
	@touch $@

demo: $(STAMP) ## start everything, bill real requests, stay up (ARGS=--exit: end after the summary)
	@$(BIN)/tollkeeper demo $(ARGS)

# What hammers one thing ten thousand times, or starts everything anew, takes up to twice as long when every line is
# counted. The rest of the tests reaches the coverage that is asked for.
UNTRACED := tests/property \
  $(addprefix tests/integration/credits/test_, \
    reference.py model.py concurrency.py lost_answers.py poisoned.py processes.py schema_agrees.py statements.py \
    verification.py) \
  tests/migration/test_previous_release.py $(addprefix tests/unit/shadow/test_, simulation.py calibration.py) \
  $(addprefix tests/acceptance/test_, \
    openapi.py fuzz.py kills.py two_services.py full_disk.py up.py demo.py bad_input.py failover.py \
    http_face.py life.py masking.py replay.py tenants.py shadow_document.py shadow_tenants.py)

test: $(STAMP) ## all tests, on a real PostgreSQL for each of as many processes as there are cores
	@.ci/pgbouncer $(VENV)/pgbouncer
	@$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS) $(UNTRACED)
	@$(BIN)/python -m pytest -n auto --dist worksteal --cov --cov-report= $(ARGS) $(UNTRACED:%=--ignore=%)
	@$(BIN)/coverage report --include='src/tollkeeper/credits/*' --fail-under=95
	@$(BIN)/coverage report --include='src/tollkeeper/access/*' --fail-under=95
	@$(BIN)/coverage report --include='src/tollkeeper/shadow/*' --fail-under=95
	@$(BIN)/coverage report --include='src/tollkeeper/database/*' --fail-under=90
	@$(BIN)/coverage report --include='src/tollkeeper/migrate/*' --fail-under=90

check: $(STAMP) ## format, lint, types, import contracts, SQL lint, unit tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python .ci/lint-migrations $(BIN)/squawk
	$(BIN)/python -m pytest -q tests/unit tests/property tests/architecture

bench: $(STAMP) ## the figures of the README, measured here (ARGS=--quick: a first look)
	@$(BIN)/python -m benchmarks $(ARGS)

soak: $(STAMP) ## 200 kills under load; 2,000 examples of each property; growth to ten million transactions
	@TOLLKEEPER_KILLS=200 $(BIN)/python -m pytest -q tests/acceptance/test_kills.py
	@TOLLKEEPER_EXAMPLES=2000 $(BIN)/python -m pytest -q -n auto tests/property
	@$(BIN)/python -m benchmarks --only growth $(ARGS)

lock: $(STAMP) ## resolve requirements.lock anew
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-header --no-annotate \
	  --upgrade --all-extras pyproject.toml --output-file requirements.lock

clean: ## remove the environment and caches, never data
	@rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage*
