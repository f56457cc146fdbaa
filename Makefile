# Everything runs in .venv, which the first target that needs it makes. Only Python >= 3.11 and make are needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CORES := $(shell $(PYTHON) -c "import os; print(len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count())")
export OMP_NUM_THREADS ?= $(shell echo $$(($(CORES) < 8 ? $(CORES) : 8)))
# One more than cores: tests wait for browsers and servers, too.
WORKERS := $(shell echo $$(($(CORES) < 3 ? $(CORES) + 1 : 4)))
export TOKENIZERS_PARALLELISM := false

.PHONY: help demo test check lint types layers docs wheel clean

help:  ## Say what can be made.
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'guardkeel needs Python 3.11 or newer; this is ' + sys.version)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY)  ## Audit a guard before and after a harmless fine-tune.
	$(BIN)/guardkeel demo

test: $(READY)  ## Run the tests in up to four processes.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

check: lint types layers docs wheel  ## Lint, strict types, import layers, docs and wheel.

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

layers: $(READY)
	$(BIN)/lint-imports

docs: $(READY)
	$(BIN)/python docs/build.py --check

wheel: $(READY)
	rm -rf dist
	$(BIN)/python -m build --no-isolation --wheel --outdir dist . > /dev/null
	$(BIN)/python tests/wheel_check.py dist/*.whl

clean:  ## Remove what was built; the model cache stays.
	rm -rf $(VENV) build dist runs .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
