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
from contextlib import contextmanager
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
# Most bytes in which a format is looked for; the header of a CSV file is one line of them.
_BEGINNING = 4096
_BUFFER = 2**17

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
    which; only CSV whose columns have unusual names is known by its own name. Rows are yielded as they are read, those
    of a pipe as they are written. An array is held in memory, and so is parquet that comes through a pipe or is packed:
    it is read from its end. `on_bad` receives the error of a row that cannot be parsed. Raises InputError for a source
    that cannot be read, naming what it is or how far reading got, and BackendError where the library for it is not
    installed.
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


def comes_live(name: str) -> bool:
    """Whether rows come as somebody writes them: from a pipe or a terminal, not from a file or a data set."""
    if name == "-":
        return sys.stdin is not None and not sys.stdin.buffer.seekable()
    return os.path.exists(name) and not os.path.isfile(name) and not os.path.isdir(name)


@contextmanager
def _open(path: str) -> Iterator[IO[bytes]]:
    """Opens a file without a buffer, so that what a pipe holds is read without waiting for more."""
    if path != "-":
        with open(path, "rb", buffering=0) as stream:
            yield stream
    elif sys.stdin is None:
        raise InputError("standard input is closed: expected a file")
    else:
        # Python ends with an error where a thread waits in a read of its own buffer of standard input.
        yield getattr(sys.stdin.buffer, "raw", sys.stdin.buffer)


def _file_rows(stream: IO[bytes], name: str, on_bad: OnBad) -> Iterator[tuple[str, Any]]:
    begin, rest = _begun(stream)
    unpack = next((unpack for magic, unpack in _PACKED.items() if begin.startswith(magic)), None)
    if unpack is not None:
        begin, rest = _begun(unpack(rest))
    if begin.startswith(b"PAR1"):
        # It is read from its end, for which a packed file would be unpacked again and again.
        if unpack is None and stream.seekable():
            stream.seek(0)
            return parquet_rows(stream, name)
        return parquet_rows(io.BytesIO(rest.read()), name)
    for magic, what in _UNREADABLE.items():
        if begin.startswith(magic):
            raise InputError(f"{name} is {what}: expected {_EXPECTED}")
    if b"\0" in begin[:4]:
        raise InputError(f"{name} is UTF-16 without its mark, or no text: expected {_EXPECTED}")
    text = begin.removeprefix(BYTE_ORDER_MARK).lstrip()
    if text.startswith(b"["):
        return json_array_rows(rest, name)
    is_csv = _CSV_NAME.fullmatch(name) is not None
    if not text.startswith(b"{") and (delimiter := find_delimiter(text, is_csv)):
        return csv_rows(rest, name, delimiter, on_bad)
    return json_line_rows(rest, name, on_bad)


def _begun(stream: IO[bytes]) -> tuple[bytes, IO[bytes]]:
    """Reads the beginning of a stream -> (it, the whole stream). It ends behind the first line that is not blank."""
    begin = b""
    while len(begin) < _BEGINNING and b"\n" not in begin.lstrip():
        if not (more := stream.read(_BEGINNING - len(begin))):
            break
        begin += more
    return begin, io.BufferedReader(_Begun(begin, stream), _BUFFER)


class _Begun(io.RawIOBase):
    """A stream with what was read of its beginning put back; closing it leaves the stream open."""

    def __init__(self, begin: bytes, rest: IO[bytes]) -> None:
        self._begin, self._rest = begin, rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._begin[: len(buffer)] or self._rest.read(len(buffer)) or b""
        self._begin = self._begin[len(data) :]
        buffer[: len(data)] = data
        return len(data)
