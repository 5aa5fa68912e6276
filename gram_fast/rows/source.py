"""Where rows come from: standard input, a file of any format, a folder, or a data set on the Hugging Face hub."""

import bz2
import gzip
import io
import lzma
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

from gram_fast.errors import InputError, one_line
from gram_fast.rows.bad_rows import OnBad
from gram_fast.rows.json_rows import json_array_rows, json_line_rows
from gram_fast.rows.lines import BYTE_ORDER_MARK
from gram_fast.rows.tables import csv_rows, dataset_rows, find_delimiter, parquet_rows

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_FILE_NAME = re.compile(r".*\.(jsonl?|parquet|[ct]sv|txt|arrow|gz|bz2|xz|zst|zip)")
_CSV_NAME = re.compile(r".*\.[ct]sv(\.(gz|bz2|xz))?", re.IGNORECASE)
# Bytes in which a format is looked for; the header of a CSV file is one line of them.
_BEGINNING = 4096

# By the first bytes of a file: what unpacks it, or what it is, where that is not read.
_PACKED: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": lambda stream: gzip.GzipFile(fileobj=stream),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
}
_UNREADABLE = {
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"PK\x03\x04": "a zip archive",
    b"7z\xbc\xaf": "a 7-Zip archive",
    b"\x28\xb5\x2f\xfd": "packed with zstd",
    b"ARROW1": "an Arrow file",
    b"version https://git-lfs": "a pointer of Git LFS, for which git lfs pull gets the file",
    b"<!DOCTYPE": "a page of HTML",
    b"<html": "a page of HTML",
}
_EXPECTED = "JSON lines, a JSON array or CSV in UTF-8, or parquet, as it is or packed with gzip, bzip2 or xz"


@dataclass(frozen=True)
class RowSource:
    """A file, "-" for standard input, or a folder or hub name that the datasets library loads."""

    path: str
    subset: str | None = None
    split: str = "train"
    folder: str | None = None

    @property
    def is_file(self) -> bool:
        """Whether the rows are read here, not by the datasets library."""
        return self.path == "-" or (os.path.exists(self.path) and not os.path.isdir(self.path))


def find_rows(name: str) -> RowSource | None:
    """Resolves a name: a file or "-"; a local folder or a data set on the hub, either with a split behind a colon.

    None for a name that can be none of these.
    """
    if name == "-" or os.path.exists(name):
        return RowSource(name)
    path, _, split = name.partition(":")
    if os.path.isdir(path) or (_HUB_NAME.fullmatch(path) and not _FILE_NAME.fullmatch(path)):
        return RowSource(path, split=split or "train")
    return None


def read_rows(source: str | RowSource, on_bad: OnBad) -> Iterator[tuple[str, Any]]:
    """Yields (where, row) for every row of a source, such as ("pairs.jsonl line 7", {...}), in order.

    A file is JSON Lines, one JSON array, CSV or parquet, as it is or packed with gzip, bzip2 or xz. Its content tells
    which; only CSV whose columns have unusual names is known by its own name. JSON Lines, CSV and parquet are streamed;
    an array, and what cannot be read twice, such as standard input, is held in memory. `on_bad` receives the error of a
    row that cannot be parsed. Raises InputError for a source that cannot be read, naming what it is or how far reading
    got, and BackendError where the library for it is not installed.
    """
    found = find_rows(source) if isinstance(source, str) else source
    if found is None:
        raise InputError(f"cannot read {source}: there is no such file, and names on the hub are org/name[:split]")
    if not found.is_file:
        yield from dataset_rows(found.path, found.subset, found.split, found.folder)
        return
    name = "standard input" if found.path == "-" else found.path
    try:
        with _open(found.path) as stream:
            yield from _file_rows(stream, name, on_bad)
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
        raise InputError(f"cannot read {name}: {reason}") from None


def _open(path: str) -> IO[bytes]:
    """Opens a file whose beginning can be read twice."""
    if path == "-":
        if sys.stdin is None:
            raise InputError("standard input is closed: expected a file")
        return io.BytesIO(sys.stdin.buffer.read())
    stream = open(path, "rb")  # noqa: SIM115
    if stream.seekable():
        return stream
    with stream:
        return io.BytesIO(stream.read())


def _file_rows(stream: IO[bytes], name: str, on_bad: OnBad) -> Iterator[tuple[str, Any]]:
    begin = _beginning(stream)
    unpack = next((unpack for magic, unpack in _PACKED.items() if begin.startswith(magic)), None)
    if unpack is not None:
        stream = unpack(stream)
        begin = _beginning(stream)
    if begin.startswith(b"PAR1"):
        # Parquet is read from its end, for which a packed file would be unpacked again and again.
        return parquet_rows(stream if unpack is None else io.BytesIO(stream.read()), name)
    for magic, what in _UNREADABLE.items():
        if begin.startswith(magic):
            raise InputError(f"{name} is {what}: expected {_EXPECTED}")
    if b"\0" in begin[:4]:
        raise InputError(f"{name} is UTF-16 without its mark, or no text: expected {_EXPECTED}")
    text = begin.removeprefix(BYTE_ORDER_MARK).lstrip()
    if text.startswith(b"["):
        return json_array_rows(stream, name)
    is_csv = _CSV_NAME.fullmatch(name) is not None
    if not text.startswith(b"{") and (delimiter := find_delimiter(text, is_csv)):
        return csv_rows(stream, name, delimiter, on_bad)
    return json_line_rows(stream, name, on_bad)


def _beginning(stream: IO[bytes]) -> bytes:
    begin = stream.read(_BEGINNING)
    stream.seek(0)
    return begin
