"""Interrupts a function at any line of this package, as Ctrl-C or an alarm would."""

import linecache
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import gram_fast

_PACKAGE = str(Path(gram_fast.__file__).parent)


def lines_of(function: Callable[[], object]) -> int:
    """Number of lines of the package that the function runs in this thread."""
    return _run(function, None)


def interrupted_at(line: int, function: Callable[[], object]) -> None:
    """Runs the function and raises KeyboardInterrupt when it comes to that line of the package, counted from 0."""
    _run(function, line)


def _run(function: Callable[[], object], stop: int | None) -> int:
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.startswith(_PACKAGE):
            return None
        # The line of a `with` comes again between its block and its `__exit__`, where Python lets no signal in.
        if event == "line" and not linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith(
            "with "
        ):
            count += 1
            if count - 1 == stop:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        function()
    finally:
        sys.settrace(before)
    return count
