"""Reader of JSON files: yields every row with the file and line where it begins, such as "pairs.jsonl line 7"."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gram_fast.errors import InputError, one_line

OnBad = Callable[[InputError], None]
"""Callback that receives the error of a bad row: it raises to stop, or returns to skip the row."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_WHITE_SPACE = re.compile(r"[ \t\n\r]*")
_BEGINNING = 4096


def read_json_rows(path: str, on_bad: OnBad) -> Iterator[tuple[str, Any]]:
    """Yields (where, row) for every row of a JSON Lines file or of a file that holds one JSON array.

    The first character tells the two apart. JSON Lines are streamed; the text of an array is held in memory. `on_bad`
    receives the error of a line that is not JSON. Raises InputError for a file that cannot be read and for an array
    that is not JSON.
    """
    try:
        with open(path, "rb") as file:
            begin = file.read(_BEGINNING)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    if begin.removeprefix(_BYTE_ORDER_MARK).lstrip().startswith(b"["):
        return _array_rows(path)
    return _line_rows(path, on_bad)


def raise_bad_row(error: InputError) -> None:
    """The OnBad that stops at the first bad row."""
    raise error


def get_field(row: Mapping[str, Any], name: str) -> Any:
    """Returns the field `name` of a row. Raises InputError that lists the fields found when it is absent."""
    if name not in row:
        raise InputError(f"expected a field {name!r}, found {', '.join(map(repr, row)) or 'none'}")
    return row[name]


def _line_rows(path: str, on_bad: OnBad) -> Iterator[tuple[str, Any]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            line = (line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line).rstrip()
            if not line:
                continue
            try:
                row = json.loads(line.decode())
            except (ValueError, RecursionError) as error:
                on_bad(not_json(f"{path} line {number}", error))
            else:
                yield f"{path} line {number}", row


def _array_rows(path: str) -> Iterator[tuple[str, Any]]:
    """Decodes the elements of an array one at a time, to know the line on which each begins."""
    data = Path(path).read_bytes().removeprefix(_BYTE_ORDER_MARK)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise not_json(f"{path} line {line}", error) from None
    decode = json.JSONDecoder().raw_decode
    line, counted, separator = 1, 0, ""
    position = _skip_white_space(text, _skip_white_space(text, 0) + 1)
    while not text.startswith("]", position):
        if not text.startswith(separator, position):
            raise InputError(f"{path} line {_line_at(text, position)}: expected ',' or ']' after an element")
        position = _skip_white_space(text, position + len(separator))
        line, counted, separator = line + text.count("\n", counted, position), position, ","
        try:
            row, position = decode(text, position)
        except (ValueError, RecursionError) as error:
            line = getattr(error, "lineno", line)
            raise not_json(f"{path} line {line}", error) from None
        yield f"{path} line {line}", row
        position = _skip_white_space(text, position)
    if _skip_white_space(text, position + 1) < len(text):
        raise InputError(f"{path} line {_line_at(text, position)}: expected nothing after the end of the array")


def _line_at(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _skip_white_space(text: str, position: int) -> int:
    match = _WHITE_SPACE.match(text, position)
    assert match is not None  # the pattern matches nothing too
    return match.end()


def not_json(where: str, error: Exception) -> InputError:
    """Makes the error of text that is not JSON; `where` names its file and line, which the message does not repeat."""
    if isinstance(error, UnicodeDecodeError):
        return InputError(f"{where}: expected UTF-8, found the byte 0x{error.object[error.start]:02x}")
    if isinstance(error, json.JSONDecodeError):
        # Some messages of the json module end in "at", with the place behind it.
        return InputError(f"{where}: expected JSON, {error.msg.removesuffix(' at')} at column {error.colno}")
    return InputError(f"{where}: expected JSON, {one_line(error)}")
