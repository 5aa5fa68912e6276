"""What the code around a call has set for its own thread, and how a judge computes apart from it."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import ParamSpec, TypeVar

import torch

from gram_fast.scoring.forks import in_new_thread, lost_threads

P = ParamSpec("P")
R = TypeVar("R")


def sheltered(function: Callable[P, R]) -> Callable[P, R]:
    """Has a function compute the same bits whatever surrounds it, and leaves that as it was.

    Autocast would round products; grad mode would keep all activations; a default device would put tables of integers
    elsewhere; inference mode would spoil for training what a caller's model keeps (`Engine`). In a forked child the
    function has a thread of its own where it needs one.

    What is set for all threads of a process holds here too: the default dtype and deterministic algorithms, which
    change no bit, and how exactly torch multiplies float32 (`torch.set_float32_matmul_precision`).
    """

    @functools.wraps(function)
    def apart(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.inference_mode(False), torch.no_grad(), _no_autocast("cpu"), _no_autocast("cuda"), _on_cpu():
            return function(*args, **kwargs)

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if lost_threads():
            return in_new_thread(functools.partial(apart, *args, **kwargs))
        return apart(*args, **kwargs)

    return run


def _no_autocast(kind: str) -> AbstractContextManager[object]:
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _on_cpu() -> AbstractContextManager[object]:
    """Context of the CPU as default device. A context costs every call of torch a microsecond: only where needed."""
    return nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")
