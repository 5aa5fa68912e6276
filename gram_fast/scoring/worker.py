"""One thread for all passes of an engine that many threads ask."""

import threading
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
        self.is_interrupted = threading.Event()
        """Whether who waits for the function was interrupted: it is to end soon."""

    def run(self, function: Callable[[], R]) -> R:
        """Runs a function and waits for it. An interruption is raised when the function has ended."""
        self.is_interrupted.clear()
        # The context says which calls a hook of the model is within.
        future: Future[R] = self._pool.submit(copy_context().run, self._on_device, function)
        try:
            return future.result()
        except BaseException:
            if not future.done():
                self.is_interrupted.set()
            raise
        finally:
            wait([future])
            del future  # its error holds this frame, which would hold it, and with it what a failed pass had made

    def _on_device(self, function: Callable[[], R]) -> R:
        with on_device(self._device):
            return function()
