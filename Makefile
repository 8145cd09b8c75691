# Everything a person types: make install | demo | test | drill | lint | lock
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test drill lint lock clean

install: $(STAMP)

# Bytecode is compiled here: where Python may write none (PYTHONDONTWRITEBYTECODE, as in many containers), every process
# would compile PyTorch anew, 15 s instead of 4.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "alasca needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 2; }
	@echo "Installing into $(VENV) (the first time downloads about 3 GB: PyTorch brings its CUDA libraries)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --python $(BIN)/python --compile-bytecode --requirements requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --no-deps --editable .
	@touch $@

demo: $(STAMP)
	$(BIN)/alasca shard digits --split train --noise symmetric:0.4 --seed 0 --out data/digits/train
	$(BIN)/alasca shard digits --split test --seed 0 --out data/digits/test
	$(BIN)/alasca compare configs/compare/demo.toml

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

drill: $(STAMP)
	$(BIN)/python -m drills --out docs/drills.md

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Pins for every supported Python and platform; holds names and versions only.
lock: $(STAMP)
	$(BIN)/uv pip compile --universal --python-version 3.11 --extra dev --extra s3 --no-header --no-annotate pyproject.toml --output-file requirements.lock

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
