# make run    set up with every extra, run the default experiment on real embedded data
# make test   set up, pass the tests that every change needs
# make test-all   also those of clusters, kills, faults of networks and whatever else is slow
# make check  lint, types, import rules and prose
# make docs   docs/settings.md from the texts of the configuration, and the site in site/, strictly
# make notebooks  execute the notebooks of examples/ and write them, with their results, to docs/examples/
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: run test test-rest test-all check docs notebooks bench clean
.DEFAULT_GOAL := run

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "ntkpipe needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all]" --group dev
	@touch $@

run: $(READY)
	$(BIN)/ntkpipe run experiment=digits_fcn

# One BLAS thread in each of the processes: theirs together are as many as the cores, and idle ones would spin in each other's way.
# Bytecode is written: hundreds of processes import the package.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadgroup --no-loadscope-reorder

test: $(READY)
	$(PYTEST)

# What `test` leaves out.
test-rest: $(READY)
	$(PYTEST) -m "(slow or network) and not exhaustive"

test-all: test test-rest

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(BIN)/python tests/prose.py

docs: $(READY)
	$(BIN)/ntkpipe help format=markdown > docs/settings.md.new
	mv docs/settings.md.new docs/settings.md
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group docs
	$(BIN)/zensical build --clean --strict

notebooks: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group docs
	$(BIN)/python examples/render.py

clean:
	rm -rf $(VENV) build dist site .cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
