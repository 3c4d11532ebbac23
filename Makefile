# Every target makes its own virtual environment when there is none; nothing but Python 3.11 to 3.13 and make is needed.
PYTHON ?= python3
VENV ?= .venv
OLDEST ?= .venv-oldest
OUT ?= demo
# more options for the benchmark, such as --beside SCRIPT.py
BENCH ?=
# names of notebooks to run, such as "tour heights"
NOTEBOOKS ?=
# options of qgis/build.py
PLUGIN ?=
# mutated files of each kind in `make fuzz`
MANY ?= 2000
# options of benchmarks/soak.py, such as --minutes 5 --csv soak.csv
SOAK ?=
# options of .ci/mutants.py, such as --sample 30 geometry
MUTANTS ?=
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: install demo test test-slow test-install predict-env fuzz soak kills test-oldest constraints-oldest mutants wheel plugin
.PHONY: lint lint-packaging format bench docs notebooks clean

install: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else "Python %d.%d found; 3.11 to 3.13 needed: make PYTHON=python3.12 ..." % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,docs,onnx,cluster,tensorboard,zones]'
	@touch $(READY)

demo: $(READY)
	$(BIN)/rs-biformer demo --out $(OUT)

# Two processes of one thread each take about half the time of one with two.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadscope

test-slow: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist load --timeout 1200 -m 'slow and not gpu'

# Both wheels into environments of their own, with the demo in that of the toolkit: minutes, and gigabytes for a while.
test-install: $(READY)
	$(BIN)/python -m pytest --timeout 1200 -m install

# rs-biformer-predict alone: its environment without PyTorch, and what it maps.
predict-env: $(READY)
	$(BIN)/python -m pytest --timeout 1200 -m install -k prediction

# Over twenty thousand mutated files, thousands of every kind; the slow suite tries some hundreds. An hour or two.
fuzz: $(READY)
	RS_BIFORMER_FUZZ=$(MANY) OMP_NUM_THREADS=1 $(BIN)/python -m pytest --timeout 36000 -m '' tests/fuzz

# Every command of tests/test_kills.py killed twelve times; the slow suite kills each once.
kills: $(READY)
	RS_BIFORMER_KILLS=12 OMP_NUM_THREADS=1 $(BIN)/python -m pytest --timeout 7200 -m slow tests/test_kills.py

# Training and prediction in a loop for an hour, under a watch of memory, handles, threads and files.
soak: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/soak.py $(SOAK)

# The lowest versions that pyproject.toml allows, all at once; on the lowest Python: make test-oldest PYTHON=python3.11
$(OLDEST)/.ready: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet --disable-pip-version-check --constraint constraints-oldest.txt --editable '.[dev,onnx,cluster,lora,tensorboard,zones]'
	@touch $(OLDEST)/.ready

test-oldest: $(OLDEST)/.ready
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest --numprocesses 2 --dist loadscope

# Writes constraints-oldest.txt anew: after a lower bound of pyproject.toml was changed.
constraints-oldest: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --quiet --python-version 3.11 --resolution lowest-direct --no-annotate --no-header \
		--extra dev --extra onnx --extra cluster --extra lora --extra tensorboard --extra zones --output-file constraints-oldest.txt pyproject.toml

# Changes the code in one place at a time and shows what its tests do not notice: see CONTRIBUTING.md.
mutants: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python .ci/mutants.py $(MUTANTS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/ci.yml
	$(BIN)/check-jsonschema --builtin-schema custom.github-workflows-require-timeout .github/workflows/ci.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

# Wheels and sdists of both distributions, in dist/, named after the last tag.
wheel: $(READY)
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/python -m build --outdir dist packaging/predict

# The linters of the files in packaging/ and of what is built from them; a hundred megabytes that `install` leaves out.
lint-packaging: wheel
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[packaging]'
	$(BIN)/check-wheel-contents dist
	$(BIN)/hadolint packaging/docker/Dockerfile.*
	$(BIN)/python -m pytest tests/test_packaging.py

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Benchmarks print their figures; benchmarks/RESULTS.md keeps those that were measured on purpose.
bench: $(READY)
	$(BIN)/python benchmarks/inference.py $(BENCH)

# The site of the documentation, in site/: open site/index.html. A warning, such as a dead link, is an error.
docs: $(READY)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -c docs -d build/doctrees . site

# Runs the notebooks, or those that are named (make notebooks NOTEBOOKS="tour heights"), and stores what they show.
notebooks: $(READY)
	$(BIN)/python docs/run_notebooks.py $(NOTEBOOKS)

# The zip that QGIS's plugin manager installs. plugins.qgis.org also wants PLUGIN="--email ... --repository ... --tracker ..."
plugin: $(READY)
	$(BIN)/python qgis/build.py $(PLUGIN)

clean:
	rm -rf $(VENV) $(OLDEST) build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
