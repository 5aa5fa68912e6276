"""Files of self-training: whole or absent under their names, and written chunk by chunk, so that a killed run goes on.

A file is written under its name with PART behind it, and renamed when all of it is on the disk. Nothing in it depends
on when it was written, or in how many runs: a chunk that was begun and not ended is made again.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, TypeVar

from tqdm import tqdm

from gram_fast.errors import InputError, one_line
from gram_fast.training.saving import replace

PART = ".part"
"""Ending of a file that is being written."""

# Lines that are written at a time.
_BLOCK = 1024

Row = TypeVar("Row")


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a file that is whole or absent. Raises InputError where it cannot be written."""
    part = _part(path)
    with _writing(path):
        with open(part, "wb") as file:
            file.write(data)
            _to_disk(file)
        replace(part, path)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a value as JSON of several lines. Raises as `write_bytes`."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace"))


def write_lines(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    """Writes a line of JSON for each value, into a file that is whole or absent.

    Raises as `write_bytes`, and errors of making the values as they are.
    """
    part, rest = _part(path), iter(values)
    with _writing(path):
        part.write_bytes(b"")
    while block := list(islice(rest, _BLOCK)):
        _append(path, block)
    with _writing(path):
        replace(part, path)


def write_chunks(
    path: Path,
    rows: Iterable[Row],
    make: Callable[[Sequence[Row]], Sequence[Mapping[str, Any]]],
    *,
    size: int,
    total: int,
    name: str,
) -> None:
    """Makes a line of JSON of each row, in order, in chunks of `size` rows, each flushed as a whole.

    Goes on with the chunks that an earlier run wrote. `make` makes as many values as it is given rows. `total` and
    `name` are for the progress bar, which shows on a terminal after two seconds. Raises as `write_bytes`, and errors of
    `make`.
    """
    part = _part(path)
    with _writing(path), open(part, "ab"):
        done = _keep_whole_chunks(part, size)
    rest = islice(rows, done, None)
    with tqdm(total=total, initial=done, desc=name, unit="row", delay=2, disable=None) as bar:
        while chunk := list(islice(rest, size)):
            made = make(chunk)
            if len(made) != len(chunk):
                raise ValueError(f"{name}: expected {len(chunk)} values, got {len(made)}")
            _append(path, made)
            bar.update(len(chunk))
    with _writing(path):
        replace(part, path)


def read_json(path: Path) -> dict[str, Any]:
    """Reads what `write_json` wrote. Raises InputError where it cannot be read."""
    with _reading(path):
        return dict(json.loads(path.read_text("utf-8")))


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Reads the lines of a file that `write_chunks` or `write_lines` wrote. Raises as `read_json`."""
    with _reading(path), open(path, encoding="utf-8", newline="\n") as file:
        for line in file:
            yield json.loads(line)


def count_lines(path: Path) -> int:
    """Counts the lines of a file. Raises as `read_json`."""
    with _reading(path), open(path, "rb") as file:
        return sum(1 for _ in file)


def _part(path: Path) -> Path:
    return path.with_name(path.name + PART)


def _keep_whole_chunks(path: Path, size: int) -> int:
    """Cuts off what is behind the last whole chunk of a file -> its rows."""
    done, end, kept = 0, 0, 0
    with open(path, "rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            done, end = done + 1, end + len(line)
            if done % size == 0:
                kept = end
    os.truncate(path, kept)
    return done - done % size


def _append(path: Path, values: Iterable[Mapping[str, Any]]) -> None:
    """Appends lines to a file that is being written."""
    with _writing(path), open(_part(path), "ab") as file:
        file.write(b"".join(map(_line, values)))
        _to_disk(file)


def _to_disk(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _line(value: Mapping[str, Any]) -> bytes:
    # A lone surrogate is no character of UTF-8.
    return (json.dumps(value, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or one_line(error)}; the same command goes on"
        ) from None


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or one_line(error)}") from None
