"""Rows of work: JSON lines in, JSON lines out, one output row an input row, written as soon as it is known.

A row is {"id", "prompt", "responses"}; prompt and responses are strings or lists of chat messages. Without "id" a row
is known by its line number. The input is read and checked whole before any scoring starts.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from gram_fast.errors import GramFastError, InputError
from gram_fast.group import Group


@dataclass(frozen=True)
class Row:
    """One prompt with its candidates, and where it stands."""

    id: str | int
    prompt: Any
    responses: list[Any]
    where: str


def read_rows(path: str, on_bad: Callable[[InputError], None]) -> list[Row]:
    """All rows of a file, or of standard input for "-"; blank lines are passed over.

    `on_bad` is given the error of a bad line, which names it; it raises, or returns to go on without that line. Raises
    InputError when the file cannot be read.
    """
    rows: list[Row] = []
    line_of: dict[str, str] = {}
    for where, line in _lines(path):
        try:
            row = _read_row(where, line)
            key = id_key(row.id)
            if key in line_of:
                raise InputError(f"{where}: expected an id of its own, {row.id!r} is also that of {line_of[key]}")
            line_of[key] = where
            rows.append(row)
        except InputError as error:
            on_bad(error)
    return rows


def _lines(path: str) -> Iterator[tuple[str, bytes]]:
    name = "standard input" if path == "-" else path
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror}") from None
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            yield f"{name} line {number}", line


def _read_row(where: str, line: bytes) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:  # bad UTF-8 is a ValueError too
        raise InputError(f"{where}: expected JSON, {error}") from None
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected a JSON object, got {type(row).__name__}")
    for key in ("prompt", "responses"):
        if key not in row:
            raise InputError(f"{where}: expected a key {key!r}, found {', '.join(map(repr, row)) or 'none'}")
    row_id = row.get("id", int(where.rpartition(" ")[2]))
    if not isinstance(row_id, str | int):
        raise InputError(f"{where}: expected 'id' to be a string or an integer, got {row_id!r}")
    try:
        Group.of(row["prompt"], row["responses"])
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return Row(row_id, row["prompt"], row["responses"], where)


def id_key(row_id: Any) -> str:
    """What tells ids apart: 1 and "1" are two."""
    return json.dumps(row_id, ensure_ascii=False)


@contextmanager
def open_output(path: str, resume: bool) -> Iterator[tuple[IO[str], set[str]]]:
    """A file to append rows to, and the keys of the ids that it holds already; "-" is standard output.

    With `resume`, a last line that an interruption cut short is taken off. Raises InputError for a file that is there
    without `resume`, so that nothing written is lost, and for one that holds something else.
    """
    if path == "-":
        if resume:
            raise InputError("--resume: expected --output FILE, what went to standard output cannot be read back")
        yield sys.stdout, set()
        return
    is_new = not os.path.exists(path)
    if not (is_new or resume):
        raise InputError(f"output {path} is there already: go on with --resume, or name another file")
    try:
        with open(path, "xb" if is_new else "r+b") as file:
            done = set() if is_new else _read_done(file, path)
            with open(file.fileno(), "a", encoding="utf-8", closefd=False) as text:
                yield text, done
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None
    finally:
        # A run that failed before its first row leaves no empty file in the way of the next.
        if is_new and os.path.exists(path) and os.path.getsize(path) == 0:
            os.unlink(path)


def _read_done(file: IO[bytes], path: str) -> set[str]:
    data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    done = set()
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            done.add(id_key(json.loads(line)["id"]))
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path} line {number}: expected an output row with an 'id'") from None
    file.truncate(len(whole))
    return done


def run_rows(
    rows: list[Row],
    score: Callable[[Row], dict[str, Any]],
    output: IO[str],
    done: set[str],
    on_bad: Callable[[GramFastError], None],
) -> int:
    """Scores rows that are not done and writes one line each, with a progress bar -> how many were written.

    A row whose scoring fails goes to `on_bad`, which raises or returns to go on. Raises InputError when `done` holds
    ids that the rows lack: then the output is another job's.
    """
    keys = {id_key(row.id) for row in rows}
    if foreign := done - keys:
        raise InputError(f"--resume: the output holds id {min(foreign)}, which the input lacks: it is of another run")
    written = 0
    with tqdm(total=len(rows), initial=len(done), unit="row", disable=None) as bar:
        for row in rows:
            if id_key(row.id) in done:
                continue
            try:
                result = score(row)
            except GramFastError as error:
                on_bad(type(error)(f"{row.where}: {error}"))
            else:
                output.write(json.dumps({"id": row.id, **result}, ensure_ascii=False) + "\n")
                output.flush()
                written += 1
            bar.update()
    return written
