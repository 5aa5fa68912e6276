"""Raw rows out of a source, one by one, each with where it stands: "pairs.jsonl line 7", "org/name:train row 7"."""

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gram_fast.errors import BackendError, InputError, first_line
from gram_fast.training.sources import Source

OnBad = Callable[[InputError], None]
"""Is given the error of a bad row; it raises, or returns to go on without that row."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_WHITE_SPACE = re.compile(r"[ \t\n\r]*")
_PARQUET_BATCH = 256


def read_rows(source: Source, on_bad: OnBad) -> Iterator[tuple[str, Any]]:
    """(where, row) of all rows. A file is parquet, a JSON array or JSON lines, told by how it begins.

    `on_bad` is given the error of a line that is not JSON. Raises InputError for a source that cannot be read on from
    where it names, and BackendError when a library that it takes is not installed.
    """
    if not os.path.isfile(source.path):
        return _datasets_rows(source)
    try:
        with open(source.path, "rb") as file:
            begin = file.read(4096)
    except OSError as error:
        raise InputError(f"cannot read {source.path}: {error.strerror}") from None
    if begin.startswith(b"PAR1"):
        return _parquet_rows(source.path)
    if begin.removeprefix(_BYTE_ORDER_MARK).lstrip().startswith(b"["):
        return _array_rows(source.path)
    return _line_rows(source.path, on_bad)


def _line_rows(path: str, on_bad: OnBad) -> Iterator[tuple[str, Any]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            line = (line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line).rstrip()
            if not line:
                continue
            try:
                row = json.loads(line.decode())
            except (ValueError, RecursionError) as error:
                on_bad(_not_json(path, number, error))
            else:
                yield f"{path} line {number}", row


def _array_rows(path: str) -> Iterator[tuple[str, Any]]:
    """Elements are decoded one at a time, as each is named by the line on which it begins."""
    data = Path(path).read_bytes().removeprefix(_BYTE_ORDER_MARK)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise _not_json(path, data.count(b"\n", 0, error.start) + 1, error) from None
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
            raise _not_json(path, getattr(error, "lineno", line), error) from None
        yield f"{path} line {line}", row
        position = _skip_white_space(text, position)
    if _skip_white_space(text, position + 1) < len(text):
        raise InputError(f"{path} line {_line_at(text, position)}: expected nothing after the end of the array")


def _parquet_rows(path: str) -> Iterator[tuple[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise BackendError(f"{path}: parquet files take pyarrow, pip install 'gram_fast[train]'") from None
    number = 0
    try:
        batches = parquet.ParquetFile(path).iter_batches(_PARQUET_BATCH)
        for number, row in enumerate((row for batch in batches for row in batch.to_pylist()), start=1):
            yield f"{path} row {number}", row
    except (OSError, ValueError, ArrowException) as error:
        raise InputError(f"cannot read {path} as parquet, after {number} rows: {first_line(error)}") from error


def _datasets_rows(source: Source) -> Iterator[tuple[str, Any]]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise BackendError(
            f"{source.path}: folders and hub names take datasets, pip install 'gram_fast[train]'"
        ) from None
    name, number = f"{source.path}:{source.split}", 0
    kind = "a folder" if os.path.isdir(source.path) else "a data set on the hub, there being no such file"
    try:
        rows = load_dataset(source.path, source.subset, data_dir=source.folder, split=source.split, streaming=True)
        for number, row in enumerate(rows, start=1):
            yield f"{name} row {number}", row
    except Exception as error:  # what the library, its readers and the network raise has no common base
        raise InputError(f"cannot read {name} as {kind}, after {number} rows: {first_line(error)}") from error


def _line_at(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _skip_white_space(text: str, position: int) -> int:
    match = _WHITE_SPACE.match(text, position)
    assert match is not None  # the pattern matches nothing too
    return match.end()


def _not_json(path: str, line: int, error: Exception) -> InputError:
    if isinstance(error, UnicodeDecodeError):
        return InputError(f"{path} line {line}: expected UTF-8, found the byte 0x{error.object[error.start]:02x}")
    said = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else first_line(error)
    return InputError(f"{path} line {line}: expected JSON, {said}")
