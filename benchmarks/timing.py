"""Times calls by the wall clock."""

import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def timed(run: Callable[[], Result]) -> tuple[float, Result]:
    """Runs once -> seconds that it took, what it returned."""
    started = time.perf_counter()
    result = run()
    return time.perf_counter() - started, result
