# make demo | make test set up everything in .venv and run; GPU=1 takes torch's CUDA build.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
GPU ?=
FLAVOUR := $(if $(GPU),cuda,cpu)
READY := $(VENV)/.ready-$(FLAVOUR)
# PyPI's Linux wheels of torch bring several GB of CUDA; PyTorch's own index has CPU wheels.
# Where that index cannot be reached, pip warns and takes what its other indexes offer.
TORCH_INDEX := $(if $(GPU),,--extra-index-url https://download.pytorch.org/whl/cpu)
# A file's tests share servers and workers, so they stay in one process. Files run in the order of
# their names, unit tests last: the slowest files have the fewest tests, and xdist would end with them.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile \
	--no-loadscope-reorder
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: setup demo test check check-full clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Blockyard needs Python 3.11 or later; name one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --retries 1 --timeout 15 $(TORCH_INDEX) torch torchvision
	@rm -rf *.egg-info  # setuptools leaves an old one as it is, and its entry points would be found first
	$(PIP) --editable '.[dev]'
	@rm -f $(VENV)/.ready-*
	@touch $@

demo: $(READY)
	$(BIN)/blockyard demo

test: $(READY)
	$(PYTEST) -m 'not full'

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check-full: check
	$(PYTEST)

clean:
	rm -rf $(VENV) blockyard-demo
