# make demo   overlays, meshes and a table for demo_data/, in demo_out/
# make test   every check
# Both make the virtual environment .venv the first time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test setup clean

demo: setup
	$(BIN)/python demo.py

test: setup
	$(BIN)/python -m pytest -q

setup: $(VENV)/.done

# Set up anew only when what is installed changes. The marker is written last, so a broken set-up is not taken for one.
$(VENV)/.done: pyproject.toml requirements.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 …" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --editable .
	touch $@

clean:
	rm -rf $(VENV) demo_out
