"""What becomes of rows that cannot be used: errors that name their place, and who decides whether to go on."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from gram_fast.errors import InputError, one_line

OnBad = Callable[[InputError], None]
"""Callback that receives the error of a bad row: it raises to stop, or returns to skip the row."""


def raise_bad_row(error: InputError) -> None:
    """The OnBad that stops at the first bad row."""
    raise error


def get_field(row: Mapping[str, Any], name: str) -> Any:
    """Returns the field `name` of a row. Raises InputError that lists the fields found when it is absent."""
    if name not in row:
        raise InputError(f"expected a field {name!r}, found {', '.join(map(repr, row)) or 'none'}")
    return row[name]


def not_json(where: str, error: Exception) -> InputError:
    """Makes the error of text that is not JSON; `where` names its file and line, which the message does not repeat."""
    if isinstance(error, UnicodeDecodeError):
        return not_utf8(where, error)
    if isinstance(error, json.JSONDecodeError):
        # Some messages of the json module end in "at", with the place behind it.
        return InputError(f"{where}: expected JSON, {error.msg.removesuffix(' at')} at column {error.colno}")
    return InputError(f"{where}: expected JSON, {one_line(error)}")


def not_utf8(where: str, error: UnicodeDecodeError) -> InputError:
    """Makes the error of bytes that are not UTF-8."""
    return InputError(f"{where}: expected UTF-8, found the byte 0x{error.object[error.start]:02x}")
