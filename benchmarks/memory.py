"""Measures the memory that a call takes while it runs."""

import threading
from collections.abc import Callable
from typing import Any

import psutil
import torch


def peak_growth(run: Callable[[], Any]) -> int:
    """Runs once -> growth of what is held meanwhile at its peak, in bytes: of torch on a GPU, else of the process."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return int(torch.cuda.max_memory_allocated() - before)
    process, stop, peaks = psutil.Process(), threading.Event(), [0]

    def watch() -> None:
        while not stop.wait(0.002):
            peaks.append(process.memory_info().rss)

    before, watcher = process.memory_info().rss, threading.Thread(target=watch)
    watcher.start()
    run()
    stop.set()
    watcher.join()
    return max(0, int(max(peaks) - before))
