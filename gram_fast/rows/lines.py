"""Lines of a file of text, with their numbers; a line that is too long to hold is an error, not the end of memory."""

from collections.abc import Iterator
from typing import IO

from gram_fast.errors import InputError
from gram_fast.rows.bad_rows import OnBad

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# Most bytes of a line; parsing takes several times as much memory. The most that a judge reads, 16 million tokens, are
# some 64 MB.
_LONGEST = 2**28


def read_lines(stream: IO[bytes], name: str, on_bad: OnBad) -> Iterator[tuple[int, bytes]]:
    """Yields (number from 1, line) for every line; `on_bad` receives the error of one that is too long."""
    number = 0
    while line := stream.readline(_LONGEST + 1):
        number += 1
        if len(line) <= _LONGEST:
            yield number, line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line
            continue
        while line and not line.endswith(b"\n"):
            line = stream.readline(2**20)
        on_bad(InputError(f"{name} line {number}: expected at most {_LONGEST} bytes in a line, found more"))
