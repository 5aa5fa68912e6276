"""Runs a function in a forked child of the test, with a lock that stays locked there."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def held(lock: threading.Lock) -> Iterator[None]:
    """Another thread holds the lock."""
    has_lock, may_go = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            has_lock.set()
            may_go.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    has_lock.wait()
    try:
        yield
    finally:
        may_go.set()
        thread.join()


def exit_code_of_fork(function: Callable[[], object], seconds: float = 20) -> int | None:
    """Runs `function` in a forked child -> 0, 1 where it raised, None where it hung and had to be killed."""
    child = os.fork()
    if child == 0:
        try:
            function()
        except BaseException:  # whatever happens, a forked pytest must not go on
            os._exit(1)
        os._exit(0)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None
