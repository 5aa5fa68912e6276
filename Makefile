# make demo | test | lint | sanitize. Each sets .venv up first, and again only when what it is made from has changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CPP := $(wildcard csrc/*.cpp csrc/*.cu csrc/*.h csrc/*.cuh)
SANITIZED := build/sanitize
GNU_LIBS = $(shell gcc -print-file-name=libasan.so) $(shell gcc -print-file-name=libstdc++.so.6)

.PHONY: demo test lint sanitize clean

demo: $(VENV)/.built
	$(BIN)/python examples/demo.py

test: $(VENV)/.built
	$(BIN)/python -m pytest

lint: $(VENV)/.built
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP)

# The extension with the address and undefined-behaviour sanitizers, under the tests of everything that it does.
# libstdc++ is preloaded beside libasan: with libasan alone the first C++ exception ends the process.
sanitize: $(VENV)/.built
	GRAM_FAST_SANITIZE=ON GRAM_FAST_CUDA=OFF $(BIN)/python setup.py -q build --build-base build/sanitize.tmp --build-lib $(SANITIZED)
	LD_PRELOAD="$(GNU_LIBS)" ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=$(SANITIZED) GRAM_FAST_EXPECT_SANITIZED=1 \
		$(BIN)/pytest tests/test_token_tree.py tests/test_merge_states.py tests/test_label_logits.py tests/test_tree_attention.py

$(VENV)/.installed: constraints.txt pyproject.toml setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt setuptools pybind11 cmake ninja torch
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e ".[test,lint]"
	touch $@

$(VENV)/.built: $(VENV)/.installed CMakeLists.txt setup.py $(CPP)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python setup.py -q build_ext --inplace
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info gram_fast/*.so
