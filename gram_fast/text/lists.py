"""What counts as a list in arguments: lists, tuples, numpy arrays and Series."""

from collections.abc import Sequence
from typing import Any


def as_list(values: Any) -> list[Any] | None:
    """Lists the elements of a sequence, an array or a Series; None for anything else, such as text or a dict.

    Arrays and Series are known by their `tolist` (numpy, pandas, PyArrow) or `to_list` (Polars), without an import.
    """
    if isinstance(values, str | bytes | bytearray | memoryview | type):
        return None
    if isinstance(values, Sequence):
        return list(values)
    listed = getattr(values, "tolist", None) or getattr(values, "to_list", None)
    found = listed() if callable(listed) else None
    return found if isinstance(found, list) else None  # a number of numpy's is no list
