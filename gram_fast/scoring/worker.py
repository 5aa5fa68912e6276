"""One thread for all passes of an engine that many threads ask."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from typing import TypeVar

import torch

from gram_fast.devices import on_device

R = TypeVar("R")


class Worker:
    """Runs functions one after another in a thread of its own.

    oneDNN keeps what it compiles for a number of rows by thread, and OpenMP has threads for every thread that computes:
    64 threads that took turns had gigabytes of the same products.
    """

    def __init__(self, device: torch.device) -> None:
        """`device`: is the current one in the thread."""
        self._device = device
        self._pool = ThreadPoolExecutor(1, "gram_fast.Worker")

    def run(self, function: Callable[[], R]) -> R:
        """Runs a function and waits for it, whatever interrupts the wait: nothing else may run meanwhile."""
        # The context says which calls a hook of the model is within.
        future: Future[R] = self._pool.submit(copy_context().run, self._on_device, function)
        try:
            return future.result()
        finally:
            wait([future])

    def _on_device(self, function: Callable[[], R]) -> R:
        with on_device(self._device):
            return function()
