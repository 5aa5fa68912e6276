"""Fixtures for every folder with tests, and Triton's interpreter where there is no GPU."""

import os
from collections.abc import Iterator

import pytest
import torch

# Read when a kernel is decorated, so before any kernel is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tests of tiny tensors: waking threads costs more than they save, most of all where cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def poisoned_outputs() -> Iterator[None]:
    """torch.empty gives NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
