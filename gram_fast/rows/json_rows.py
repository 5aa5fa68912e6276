"""Rows of JSON: a file with one value a line, or one array of all."""

import json
import re
from collections.abc import Iterator
from typing import IO, Any

from gram_fast.errors import InputError
from gram_fast.rows.bad_rows import OnBad, not_json
from gram_fast.rows.lines import BYTE_ORDER_MARK, read_lines

_WHITE_SPACE = re.compile(r"[ \t\n\r]*")


def json_line_rows(stream: IO[bytes], name: str, on_bad: OnBad) -> Iterator[tuple[str, Any]]:
    """Yields (where, row) for every line that is not blank; `on_bad` receives the error of a line that is not JSON."""
    for number, line in read_lines(stream, name, on_bad):
        if not (line := line.rstrip()):
            continue
        try:
            row = json.loads(line.decode())
        except (ValueError, RecursionError) as error:
            on_bad(not_json(f"{name} line {number}", error))
        else:
            yield f"{name} line {number}", row


def json_array_rows(stream: IO[bytes], name: str) -> Iterator[tuple[str, Any]]:
    """Yields (where, row) for every element of an array, which is held in memory.

    A row's place is the line on which it begins or, in a file of a single line, its number. Raises InputError for text
    that is not an array.
    """
    data = stream.read().removeprefix(BYTE_ORDER_MARK)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise not_json(f"{name} line {line}", error) from None
    decode = json.JSONDecoder().raw_decode
    has_lines = 0 <= text.find("\n") < text.rfind("]")
    number, line, counted, separator = 0, 1, 0, ""
    position = _skip_white_space(text, _skip_white_space(text, 0) + 1)
    while not text.startswith("]", position):
        if not text.startswith(separator, position):
            raise InputError(f"{name} line {_line_at(text, position)}: expected ',' or ']' after an element")
        position = _skip_white_space(text, position + len(separator))
        line, counted, separator = line + text.count("\n", counted, position), position, ","
        try:
            row, position = decode(text, position)
        except (ValueError, RecursionError) as error:
            line = getattr(error, "lineno", line)
            raise not_json(f"{name} line {line}", error) from None
        number += 1
        yield f"{name} line {line}" if has_lines else f"{name} row {number}", row
        position = _skip_white_space(text, position)
    if _skip_white_space(text, position + 1) < len(text):
        raise InputError(f"{name} line {_line_at(text, position)}: expected nothing after the end of the array")


def _line_at(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _skip_white_space(text: str, position: int) -> int:
    match = _WHITE_SPACE.match(text, position)
    assert match is not None  # the pattern matches nothing too
    return match.end()
