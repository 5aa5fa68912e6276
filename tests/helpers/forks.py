"""Runs a function in a forked child of the test."""

import os
import signal
import time
from collections.abc import Callable


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
