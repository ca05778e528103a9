# Everything runs in .venv, which the first verb makes. PYTHON names another interpreter (3.11 or newer).
PYTHON ?= python3
BIN := .venv/bin
# Pins what was tested; pip resolves in seconds with it.
CONSTRAINTS := constraints.txt
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
export PIP_PROGRESS_BAR ?= off

.PHONY: help demo dev test audit weekend browser stress bench docs format clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.venv/.installed: pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 ..."; exit 2; }
	@echo "Installing into .venv (a minute or so the first time) ..."
	@$(PYTHON) -m venv .venv
	@$(PIP) install --constraint $(CONSTRAINTS) --editable .
	@touch $@

.venv/.installed-dev: .venv/.installed
	@echo "Installing the tools of the tests ..."
	@$(PIP) install --constraint $(CONSTRAINTS) --editable ".[dev]"
	@touch $@

demo: .venv/.installed  ## Fetch, materialize and load a whole race weekend; DATA=dir uses real files
	@$(BIN)/tif1-pipeline demo $(if $(DATA),--data "$(DATA)")

dev: .venv/.installed  ## The Dagster UI on loopback; DEMO=1 opens it on what the demo made
	@$(BIN)/tif1-pipeline dev $(if $(DEMO),--demo) $(if $(PORT),--port $(PORT))

# Three at once on two cores, as tests wait much. In the order of their files, so that the test that takes longest, alone
# in its file, is not the last to begin.
test: .venv/.installed-dev  ## Lint, types and the tests; ALL=1 with those that take long
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/basedpyright --level error
	@$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder $(if $(ALL),,-m "not slow") $(ARGS)

# In an environment of its own: what it depends on is nobody else's business.
.audit/.installed: Makefile
	@$(PYTHON) -m venv .audit
	@.audit/bin/python -m pip --disable-pip-version-check --quiet install pip-audit==2.10.1
	@touch $@

audit: .audit/.installed  ## Known vulnerabilities of the pinned dependencies
	@.audit/bin/python .ci/audit.py

weekend: .venv/.installed  ## A simulated race weekend under the real daemons, some ten minutes; PAGES=n of the UI
	@$(BIN)/python tests/weekend.py $(if $(PAGES),--pages $(PAGES))

browser: .venv/.installed  ## What looks at the UI's pages in the weekend; Chromium by apt-get, where there is none
	@$(PIP) install --constraint $(CONSTRAINTS) --editable ".[browser]"
	@command -v chromium || (apt-get update && apt-get install --yes --no-install-recommends chromium)

stress: .venv/.installed-dev  ## Kill, corrupt, overload and starve it; SHARE=0.2 tries less, ONLY=trials, SEED=n, PUBLISH=1
	@$(BIN)/python -m tests.stress $(if $(SHARE),--share $(SHARE)) $(if $(ONLY),--only $(ONLY)) $(if $(SEED),--seed $(SEED)) \
		$(if $(PUBLISH),--publish)

bench: .venv/.installed  ## Measure beside the peers, some twenty minutes; RUNS=n, ONLY=groups, PUBLISH=1
	@$(BIN)/python -m benchmarks $(if $(RUNS),--runs $(RUNS)) $(if $(ONLY),--only $(ONLY)) $(if $(PUBLISH),--publish)

docs: .venv/.installed  ## Build the documentation to docs/_build/html
	@test -x $(BIN)/sphinx-build || $(PIP) install --constraint $(CONSTRAINTS) --editable ".[docs]"
	@$(BIN)/sphinx-build -W --keep-going -q -d docs/_build/doctrees docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

format: .venv/.installed-dev  ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean:  ## Remove what the verbs above made
	rm -rf .venv .audit .peers .bench .demo .dagster_home .pytest_cache .ruff_cache .hypothesis build docs/_build docs/_generated *.egg-info
