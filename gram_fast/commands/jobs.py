"""Reads JSON Lines input of the scoring commands and writes one output row per input row, resumably.

An input row is {"id", "prompt", "responses"}; prompt and responses are strings or lists of chat messages. A row without
"id" is identified by its line number. The whole input is read and validated before scoring starts; each output row is
written and flushed as soon as it is scored.
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
from gram_fast.json_rows import OnBad, not_json
from gram_fast.text.group import Group
from gram_fast.text.messages import to_text


@dataclass(frozen=True)
class JobRow:
    """One input row: a prompt with its candidate responses."""

    id: str | int
    prompt: Any
    responses: list[Any]
    where: str
    """File and line in messages, such as "candidates.jsonl line 7"."""


def read_job_rows(path: str, on_bad: OnBad, num_responses: int | None = None, at_least: int = 2) -> list[JobRow]:
    """Reads all rows of a JSON Lines file, or of standard input for "-"; blank lines are skipped.

    `on_bad` receives the error of a bad line, which names the line. `num_responses`: number of responses that every row
    must have; None for `at_least` or more. Raises InputError when the file cannot be read.
    """
    rows: list[JobRow] = []
    line_of: dict[str, str] = {}
    for where, line in _lines(path):
        try:
            row = _parse_job_row(where, line, at_least)
            if num_responses not in (None, len(row.responses)):
                raise InputError(f"{where}: responses: expected {num_responses}, got {len(row.responses)}")
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
    if path == "-" and sys.stdin is None:
        raise InputError("standard input is closed: expected --input FILE")
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror}") from None
    for number, line in enumerate(data.split(b"\n"), start=1):
        if line.strip():
            yield f"{name} line {number}", line


def _parse_job_row(where: str, line: bytes, at_least: int) -> JobRow:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:  # bad UTF-8 is a ValueError too
        raise not_json(where, error) from None
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected a JSON object, got {type(row).__name__}")
    for key in ("prompt", "responses"):
        if key not in row:
            raise InputError(f"{where}: expected a key {key!r}, found {', '.join(map(repr, row)) or 'none'}")
    row_id = row.get("id", int(where.rpartition(" ")[2]))
    if not isinstance(row_id, str | int) or isinstance(row_id, bool):
        raise InputError(f"{where}: expected 'id' to be a string or an integer, got {type(row_id).__name__}")
    try:
        to_text(str(row_id), "id")
        Group.of(row["prompt"], row["responses"], at_least=at_least)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return JobRow(row_id, row["prompt"], row["responses"], where)


def id_key(row_id: Any) -> str:
    """Key of an id for comparisons: its JSON text, so that 1 and "1" differ."""
    return json.dumps(row_id, ensure_ascii=False)


@dataclass
class Output:
    """Output file, or standard output for "-", opened and written only when the first row arrives."""

    path: str
    done: set[str]
    """`id_key` of every row that the file already holds."""
    size: int
    """Bytes of complete lines in the file; an incomplete last line is cut off before the first write."""
    _file: IO[bytes] | None = None

    def write(self, row: dict[str, Any]) -> None:
        """Appends a row and flushes it."""
        data = json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        if self._file is None:
            try:
                self._file = sys.stdout.buffer if self.path == "-" else open(self.path, "ab")  # noqa: SIM115
            except OSError as error:
                raise InputError(f"cannot write {self.path}: {error.strerror}") from None
            if self.path != "-" and self._file.seekable() and self._file.tell() > self.size:
                self._file.truncate(self.size)
        self._file.write(data)
        self._file.flush()

    def close(self) -> None:
        """Closes the file, if it was opened."""
        if self._file is not None and self.path != "-":
            self._file.close()


@contextmanager
def open_output(path: str, source: str, resume: bool, run: dict[str, Any], key: str = "id") -> Iterator[Output]:
    """Opens the output for the rows of `source` as a context; "-" is standard output.

    With `resume`, the rows that the file already holds count as done; the settings that each of them records under
    "run" must equal `run`. `key` is the first field of an output row, which identifies it. Raises InputError when the
    file exists and `resume` is not set, when it holds anything but rows of this run, and when it is the input file.
    """
    if path == "-":
        if resume:
            raise InputError("--resume: expected --output FILE, what went to standard output cannot be read back")
        if sys.stdout is None:
            raise InputError("standard output is closed: expected --output FILE")
        output = Output(path, set(), 0)
    elif not os.path.isdir(os.path.dirname(path) or "."):
        raise InputError(f"cannot write {path}: there is no folder {os.path.dirname(path)}")
    elif not os.path.exists(path) or not (os.path.isfile(path) or os.path.isdir(path)):
        output = Output(path, set(), 0)
    elif os.path.isdir(path) or not os.access(path, os.W_OK):
        raise InputError(f"cannot write {path}: expected a file that may be written")
    elif source != "-" and os.path.samefile(path, source):
        raise InputError(f"output {path} is the input: name another file")
    elif not resume:
        raise InputError(f"output {path} is there already: go on with --resume, or name another file")
    else:
        output = _read_output(path, run, key)
    try:
        yield output
    finally:
        output.close()


def _read_output(path: str, run: dict[str, Any], key: str) -> Output:
    data = Path(path).read_bytes()
    size = data.rfind(b"\n") + 1
    done = set()
    for number, line in enumerate(data[:size].splitlines(), start=1):
        where = f"{path} line {number}"
        try:
            row = json.loads(line)
            done.add(id_key(row[key]))
            before = row["run"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise InputError(f"{where}: expected a row that this command wrote, with {key!r} and 'run'") from None
        if different := [name for name in run if before.get(name) != run[name]]:
            name = different[0]
            raise InputError(f"{where}: {name} was {before.get(name)!r}, now it is {run[name]!r}: it is of another run")
    start = f'{{"{key}": '.encode()
    if not start.startswith(data[size : size + len(start)]):
        raise InputError(f"{path}: expected its last line to be the start of a row that this command wrote")
    return Output(path, done, size)


def run_rows(
    rows: list[JobRow],
    score: Callable[[JobRow], dict[str, Any]],
    output: Output,
    on_bad: Callable[[GramFastError], None],
) -> int:
    """Scores every row that is not done, writes one output row for each, and returns the number written.

    Shows a progress bar. The error of a row that cannot be scored goes to `on_bad`, which raises to stop or returns to
    skip the row. Raises InputError when the output holds ids that `rows` lacks, as it then belongs to another input.
    """
    if foreign := output.done - {id_key(row.id) for row in rows}:
        raise InputError(f"--resume: the output holds id {min(foreign)}, which the input lacks: it is of another run")
    written = 0
    with tqdm(total=len(rows), initial=len(output.done), unit="row", disable=None) as bar:
        for row in rows:
            if id_key(row.id) in output.done:
                continue
            try:
                result = score(row)
            except GramFastError as error:
                on_bad(type(error)(f"{row.where}: {error}"))
            else:
                output.write({"id": row.id, **result})
                written += 1
            bar.update()
    return written
