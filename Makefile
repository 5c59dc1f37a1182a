# Set up means: a virtual environment in .venv (850 MB), some minutes the first time.
#
# make demo   set up, then compare the ways to run a real CNN on this machine's cores
# make test   set up, then run the tests
# make soak   run a stream for 5 minutes (MINUTES=480 for a night) and tell whether anything grows
# make fuzz   feed hostile models and documents to what reads them: half an hour; less with MODELS=1000 INPUTS=50000, other
#             options in FUZZ_OPTIONS (docs/reliability.md)
# make rivals install what corepipe is compared with (gigabytes), and compare: an hour or two
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RIVALS := .venv-rivals
MINUTES ?= 5
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
READY := $(VENV)/.ready
MODELS ?= 10000
INPUTS ?= 1000000
FUZZ_OPTIONS ?=

# What imports ONNX Runtime sends nothing to its maker.
export ORT_DISABLE_TELEMETRY ?= 1

.PHONY: demo test test-slow lint bench soak fuzz rivals clean

demo: $(READY)
	$(BIN)/corepipe doctor
	$(BIN)/corepipe bench squeezenet || [ $$? -eq 3 ]

test: $(READY)
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow --timeout=3600

lint: $(READY)
	$(BIN)/ruff check src tests bench fuzz
	$(BIN)/ruff format --check src tests bench fuzz
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python bench/networks.py

soak: $(READY)
	$(BIN)/python bench/soak.py --minutes $(MINUTES)

# Without atheris, which is not built for every system, the inputs are made from seeded dice alone.
fuzz: $(READY)
	$(PIP) --editable '.[dev,fuzz]' \
	  || echo "atheris cannot be installed here: fuzzing without coverage"
	$(BIN)/python fuzz/campaign.py --models $(MODELS) --inputs $(INPUTS) $(FUZZ_OPTIONS)

rivals:
	$(PYTHON) -m venv $(RIVALS)
	$(RIVALS)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[rivals,plots]'
	$(RIVALS)/bin/python bench/rivals.py

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "corepipe needs Python 3.11 or later; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[dev,openvino,ncnn]' || { $(PIP) --editable '.[dev]' && for engine in openvino ncnn; do \
	  $(PIP) --editable ".[$$engine]" || echo "no $$engine for this machine: plans do without it"; done; }
	touch $@

clean:
	rm -rf $(VENV) $(RIVALS) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
