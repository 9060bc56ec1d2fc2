# make demo: set up and run the searches end to end.  make test: set up and run all tests.
PYTHON ?= python3
VENV   ?= .venv
PY      = $(VENV)/bin/python
# One thread a process: pytest and the searches run processes side by side.
RUN     = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(PY)

.PHONY: demo test test-slow check bench setup clean

demo: setup
	$(PY) -m scalesearch family name=demo

test: setup
	$(RUN) -m pytest -n 2 --dist worksteal -m "not slow and not gpu"

test-slow: setup
	$(RUN) -m pytest -n 2 --dist worksteal -m "not gpu"

check: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

bench: setup
	for script in experiments/benchmarks/*.py; do $(RUN) $$script || exit 1; done

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "scalesearch needs Python 3.11 or newer; name one with: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
