# Everything a user or contributor types. Needs Python 3.11 or newer and a package index, no more.
#
#   make demo         a federated fine-tune of a real encoder on real text, in about two minutes
#   make test         the tests (no GPU, no hub); make test-slow holds the rest
#   make torture      kill runs at a hundred random moments; each must end with the same bits
#   make check        format, lint, types
#   make docs         the documentation as a site, in site/index.html
#   make bench        ratios against plain loops, dense algebra and the usual ways of writing a client
#
# PYTHON=python3.12 picks the interpreter; CONSTRAINTS= (empty) lets pip choose all versions.

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: setup demo test test-slow torture check format docs bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: $(PYTHON) is older than 3.11; name another: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	  $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) --editable '.[packaged,dev]'
	@touch $@

demo: setup
	$(BIN)/atlas run experiments/demo.toml

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not gpu" -n 2 --dist loadfile --no-loadscope-reorder

test-slow: setup
	$(BIN)/python -m pytest -m "slow or gpu"

torture: setup
	$(BIN)/python tests/torture.py

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: setup
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
