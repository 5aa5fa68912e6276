"""Forked processes: what becomes of a judge in a child, where none of its parent's other threads goes on.

A lock that another thread held stays locked there for ever, and libgomp's threads, which torch's operations on a CPU
wait for, are gone.
"""

import multiprocessing
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from gram_fast.errors import InputError
from gram_fast.scoring.stops import stopped_by

R = TypeVar("R")

_forks: list[None] = []
"""One for each fork between the process that imported this module and this one."""
_starts: set[weakref.WeakMethod[Callable[[], Any]]] = set()
"""What a forked child calls. Python itself would keep for ever what it is told to call."""


def in_forked_children(method: Callable[[], Any]) -> None:
    """Has a bound method called at the start of every forked child, as long as its object lives."""
    _starts.add(weakref.WeakMethod(method, _starts.discard))


def _start_child() -> None:
    _forks.append(None)
    for start in list(_starts):
        if (method := start()) is not None:
            method()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_child)


def check_forked_child(device: torch.device, num_processes: int) -> None:
    """Raises InputError where a model of the parent cannot run in its forked child.

    `num_processes`: among which the model is divided.
    """
    if device.type == "cpu" and num_processes == 1:
        return
    found = f"on {device}" if device.type != "cpu" else f"divided among {num_processes} processes"
    raise InputError(
        f"this process was forked from one that had loaded the judge: expected a judge on the CPU, got one {found}; "
        "start it by spawn"
    )


def lost_threads() -> bool:
    """Whether this thread may wait for libgomp's threads of a parent: for ever, with the first operation of several.

    It may have forked, or another thread may have. A parent that had not imported this module is known where
    multiprocessing started the child, by any method; of a CUDA process that is known not to be a fork.
    """
    was_forked = bool(_forks) or multiprocessing.parent_process() is not None
    has_cuda: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return was_forked and torch.get_num_threads() > 1 and not has_cuda


def in_new_thread(function: Callable[[], R]) -> R:
    """Runs a function in a new thread, for which libgomp starts threads of its own; an interruption stops it."""
    stop = threading.Event()
    with ThreadPoolExecutor(1, "gram_fast") as pool:
        try:
            return pool.submit(stopped_by(stop).run, function).result()
        finally:
            stop.set()
