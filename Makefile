# The commands of this repository. `make` without a target lists them.

PYTHON ?= python3
CORES ?= $(shell getconf _NPROCESSORS_ONLN)
PROFILE ?= quick
BIN := .venv/bin

# One test process per core, so each gets one thread. The tests of a file share fixtures, so they run in one process.
# A notebook cell that takes longer than CELL_TIMEOUT seconds has a dead kernel.
TEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(CORES) --dist loadfile --no-loadscope-reorder
CELL_TIMEOUT := 1200

.PHONY: help reproduce test unit notebooks refresh scoreboard site site-check lab lint format clean

help:
	@echo "make reproduce   set up, then regenerate every figure and table (PROFILE=quick, CORES=all)"
	@echo "make test        set up, then run the unit tests and the notebook regression tests"
	@echo "make lab         set up, then open the notebooks in JupyterLab"
	@echo "make refresh     copy the outputs of results/quick into the committed notebooks"
	@echo "make scoreboard  write the verdicts of the committed results into the README"
	@echo "make site        set up, then build the site into build/site, without network access"
	@echo "make site-check  open every page of it in headless Chromium: light, dark, phone"
	@echo "make lint        check style, format, imports between packages, and types"
	@echo "make format      correct style and format, where a rule can"
	@echo "make clean       remove .venv and caches; results and finished training steps stay"

# The stamp is written only after pip has succeeded, so a failed install is tried again.
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	@touch $@

reproduce: .venv/.installed
	@$(BIN)/paperlib reproduce --profile $(PROFILE) --cores $(CORES)

test: unit notebooks

# COVERAGE=1 also prints the coverage of the package. It does not count processes that the tests start.
unit: .venv/.installed
	$(TEST) $(if $(COVERAGE),--cov --cov-report=term) tests

# Only `make reproduce` writes to results/; the notebook tests write to the cache of pytest.
notebooks: .venv/.installed
	PAPERLIB_RESULTS=$(CURDIR)/.pytest_cache/results $(TEST) --nbval-lax --nbval-cell-timeout=$(CELL_TIMEOUT) notebooks

refresh: reproduce
	$(BIN)/python workflow/refresh.py

scoreboard: .venv/.installed
	$(BIN)/python workflow/scoreboard.py

# A warning is an error: a link that leads nowhere, a page that no other names. Nothing is trained.
site: .venv/.installed
	$(BIN)/python -m sphinx -b html -q -W --keep-going docs build/site

# Opens every page in headless Chromium, which must be installed.
site-check: site
	$(BIN)/python docs/check_site.py build/site

# LAB holds further options of JupyterLab. It refuses to run as root, as in a container, unless told to.
lab: .venv/.installed
	$(BIN)/jupyter lab --KernelManager.transport_encryption=auto $(if $(filter 0,$(shell id -u)),--allow-root) $(LAB) \
		notebooks/00_start_here.ipynb

lint: .venv/.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-cache
	$(BIN)/basedpyright

format: .venv/.installed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis .coverage* *.egg-info
	find paperlib tests notebooks \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
