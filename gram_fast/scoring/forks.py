"""Forked processes: what becomes of a judge in a child, where none of its parent's other threads goes on.

A lock that another thread held stays locked there for ever, and libgomp's threads, which torch's operations on a CPU
wait for, are gone.
"""

import os
import weakref
from collections.abc import Callable
from typing import Any

import torch

from gram_fast.errors import InputError


def in_forked_children(method: Callable[[], Any]) -> None:
    """Has a bound method called at the start of every forked child, as long as its object lives."""
    reference = weakref.WeakMethod(method)

    def call() -> None:
        if (found := reference()) is not None:
            found()

    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=call)


def check_forked_child(device: torch.device, num_processes: int) -> None:
    """Raises InputError where a model of the parent cannot run in its forked child, or would wait for ever.

    `num_processes`: among which the model is divided.
    """
    if device.type != "cpu":
        found, remedy = f"on {device}", "start it by spawn"
    elif num_processes > 1:
        found, remedy = f"divided among {num_processes} processes", "start it by spawn"
    elif torch.get_num_threads() > 1:
        # A fork keeps the number and loses the threads.
        found, remedy = f"with {torch.get_num_threads()} threads", "call torch.set_num_threads(1) first"
    else:
        return
    raise InputError(
        f"this process was forked from one that had loaded the judge: expected a judge on the CPU with one thread, got "
        f"one {found}; {remedy}"
    )
