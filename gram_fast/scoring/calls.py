"""Calls from within a call of the same thing, which would wait for themselves."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from gram_fast.errors import InputError


class Calls:
    """Refuses calls from within an open one, also in the threads that it runs in by a copy of its context.

    Other threads may have calls open at the same time, and a call of one thing may be made from within one of another.
    """

    @contextmanager
    def open(self) -> Iterator[None]:
        """Marks a call as open until the end of the context. Raises InputError from within another one.

        It waits for no lock: the handler of a signal may come at any line.
        """
        around = _still_open()
        if any(calls is self for calls, _ in around):
            raise InputError(
                "the judge is in the middle of a call: expected its end before a call from within it, which a hook of "
                "the model or a handler of a signal has made"
            )
        is_open = threading.Lock()
        try:
            with is_open:
                _AROUND.set((*around, (self, is_open)))
                yield
        finally:
            _AROUND.set(_still_open())


_AROUND: ContextVar[tuple[tuple[Calls, threading.Lock], ...]] = ContextVar("gram_fast_calls", default=())
"""Calls that the code of this context is within, each with a lock that is locked while it is open.

A `with` gives the lock back whatever interrupts the call, and for all copies of the context.
"""


def _still_open() -> tuple[tuple[Calls, threading.Lock], ...]:
    return tuple((calls, is_open) for calls, is_open in _AROUND.get() if is_open.locked())
