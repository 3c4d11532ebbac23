# Every target makes its own virtual environment when there is none; nothing but Python 3.11 to 3.13 and make is needed.
PYTHON ?= python3
VENV ?= .venv
OUT ?= demo
# more options for the benchmark, such as --beside SCRIPT.py
BENCH ?=
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: install demo test test-slow lint format bench clean

install: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else "Python %d.%d found; 3.11 to 3.13 needed: make PYTHON=python3.12 ..." % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,onnx,cluster]'
	@touch $(READY)

demo: $(READY)
	$(BIN)/rs-biformer demo --out $(OUT)

# Two processes of one thread each take about half the time of one with two.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadscope

test-slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist load --timeout 1200 -m 'slow and not gpu'

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Benchmarks print their figures; benchmarks/RESULTS.md keeps those that were measured on purpose.
bench: $(READY)
	$(BIN)/python benchmarks/inference.py $(BENCH)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
