"""The output folder of a run: one run at a time writes into it, and the main process decides for all."""

import errno
import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from torch import distributed
from transformers import TrainingArguments

from gram_fast.errors import GramFastError, InputError, one_line

log = logging.getLogger(__name__)

LOCK = ".lock"
"""File in the output folder that a run holds locked while it trains."""

T = TypeVar("T")


def on_main_process(arguments: TrainingArguments, function: Callable[[], T]) -> T:
    """Calls `function` in the main process alone; every process returns its result, or raises its GramFastError.

    All processes of the run have to call this; none is left waiting for one that raised.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return function()
    outcome: list[tuple[T | None, GramFastError | None] | None] = [None]
    if arguments.process_index == 0:
        try:
            outcome[0] = (function(), None)
        except GramFastError as error:
            outcome[0] = (None, error)
    distributed.broadcast_object_list(outcome, src=0)
    assert outcome[0] is not None
    result, problem = outcome[0]
    if problem is not None:
        raise problem
    return result  # type: ignore[return-value]


@contextmanager
def locked(folder: Path, arguments: TrainingArguments) -> Iterator[None]:
    """Makes the output folder and locks it for this run; removes it at the end where nothing was written.

    Raises InputError in all processes when it cannot be made or another run holds it.
    """
    descriptor: int | None = None

    def lock() -> None:
        nonlocal descriptor
        descriptor = _lock(folder)

    on_main_process(arguments, lock)
    try:
        yield
    finally:
        if descriptor is not None:
            with suppress(OSError):
                (folder / LOCK).unlink()
                if not any(folder.iterdir()):
                    folder.rmdir()
            os.close(descriptor)


def _lock(folder: Path) -> int:
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output_dir {str(folder)!r} is no folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise InputError(f"cannot write into output_dir {str(folder)!r}: {one_line(error)}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A run that ended meanwhile has removed the file that was locked here.
        is_there = os.fstat(descriptor).st_nlink > 0
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            log.warning("cannot lock output_dir %s, see that one run writes into it: %s", folder, one_line(error))
            return descriptor
        is_there = False
    if not is_there:
        os.close(descriptor)
        raise InputError(
            f"another training run is writing into output_dir {str(folder)!r}: wait for its end, or name another"
        )
    return descriptor
