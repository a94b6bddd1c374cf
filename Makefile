# make demo        overlays, meshes and a table for demo_data/, in demo_out/
# make test        the fast tests
# make test-all    every test
# make lint        ruff
# make test-avx2   a part of the checks as on a CPU without AVX-512 (most laptops), which rounds differently
# Each of them makes the virtual environment .venv the first time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all test-avx2 lint setup clean

demo: setup
	$(BIN)/python demo.py

# In up to four processes with a thread each, which is faster than one process with several.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" -n auto --maxprocesses 4 --dist worksteal

# The slow tests start processes of their own.
test-all: test
	$(BIN)/python -m pytest -q -m slow

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# PyTorch, oneDNN and MKL then use no instructions that such a CPU lacks, so bfloat16 is slow, as it is there.
AVX2 := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
# The published numbers, the trainings of all three stages, and the demo.
AVX2_TESTS := tests/golden tests/slow/test_distributed.py \
	tests/test_demo.py::test_a_folder_becomes_overlays_meshes_arrays_and_a_table

test-avx2: setup
	$(AVX2) $(BIN)/python -m pytest -q $(AVX2_TESTS)

setup: $(VENV)/.done

# Set up anew only when what is installed changes. The marker is written last, so a broken set-up is not taken for one.
$(VENV)/.done: pyproject.toml requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "Python 3.11 to 3.13 is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --editable .
	touch $@

clean:
	rm -rf $(VENV) demo_out
