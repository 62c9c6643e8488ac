# Needs Python >= 3.11 and make, nothing else: the first target that runs makes .venv and installs kvtool into it.
# `make gpu` and its like install nothing: they use the PYTHON they are given as it is, since GPU machines are often offline.

PYTHON ?= python3
GPU_OUT ?= gpu-report
GPU_SECONDS ?= 540
BIN := .venv/bin
INSTALLED := .venv/installed

# Hundreds of tests start kvtool: each would compile all of it again.
unexport PYTHONDONTWRITEBYTECODE

GPU_DRY_RUN := $(if $(findstring n,$(firstword -$(MAKEFLAGS))),--dry-run)
GPU_FLAGS = --out "$(GPU_OUT)" --seconds $(GPU_SECONDS) $(GPU_DRY_RUN)

.PHONY: bench test fuzz lint aot ray gpu gpu-tune gpu-peers readme release

bench:
	@echo "Measures for about two minutes on two cores, in 1.6 GB of memory, and writes 0.6 MB into kvtool-report."
	@test -e $(INSTALLED) || echo "First installs torch and what else it needs into .venv: 2.2 GB on disk once, minutes by the network."
	@$(MAKE) --no-print-directory $(INSTALLED)
	$(BIN)/kvtool bench --out kvtool-report

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not gpu and not aot"

# Property tests with examples that no run has drawn before; `make test` takes the same ones each time.
fuzz: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "hypothesis and not gpu and not aot" --hypothesis-profile random

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# For all cards with the installed Triton; `make aot CARDS=90 TRITON=3.6.0` for one, with a Triton that is downloaded.
aot: $(INSTALLED)
	KVTOOL_CARDS=$(CARDS) KVTOOL_TRITON=$(TRITON) $(BIN)/python -m pytest -m aot

ray: $(INSTALLED)
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cluster]' || echo "Ray cannot be installed here: its test is skipped."
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 0 tests/replay/test_replay.py -k ray

# The plus sign runs it under `make --dry-run` too, which prints the plan with its seconds.
gpu:
	+@$(PYTHON) -m tools.gpu run $(GPU_FLAGS)

gpu-tune:
	+@$(PYTHON) -m tools.gpu tune $(GPU_FLAGS)

gpu-peers:
	+@$(PYTHON) -m tools.gpu peers $(GPU_FLAGS)

readme: $(INSTALLED)
	$(BIN)/python tools/readme.py

release: $(INSTALLED)
	$(BIN)/python tools/release.py

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("kvtool needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@
