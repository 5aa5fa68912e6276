"""Output of the commands that write one row for each input row: locked, resumable, never overwritten.

An output row begins with the key that identifies it and ends with "run", the settings that it was made with. It is
written and flushed as soon as it is known. An output file is opened and locked before a model is loaded, and removed
again if nothing was written to it.
"""

import fcntl
import json
import logging
import os
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

from gram_fast.errors import InputError

log = logging.getLogger(__name__)

INPUT_DIGEST = "input_digest"
"""Field of an output row: digest of the texts of its input row."""

# Settings that are recorded for readers only: a preset and the variables of a chat template show in the digest of the
# prompt, and a limit of length refuses rows but changes none.
_NOT_COMPARED = ("preset", "chat_template_kwargs", "max_length")
_OLDER = "another kind of judge or an older version wrote it, so that it cannot be gone on with"


def id_key(row_id: Any) -> str:
    """Key of an id for comparisons: its JSON text, so that 1 and "1" differ."""
    return json.dumps(row_id, ensure_ascii=False)


@dataclass(frozen=True)
class DoneRow:
    """A row that the output file holds from an earlier run."""

    where: str
    input_digest: str | None
    """None where the row records none."""


@dataclass
class Output:
    """Open output of a run: a locked file, or a stream, such as standard output, a pipe or a device."""

    name: str
    file: IO[bytes]
    done: dict[str, DoneRow] = field(default_factory=dict)
    """Rows that the file already holds, by `id_key`."""
    size: int | None = None
    """Bytes of the file as it was last read or written; None for a stream."""
    whole: int = 0
    """Bytes of the file's whole rows; an incomplete last line behind them is cut off before the first write."""
    earlier: dict[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)
    """Settings of the rows that the file already holds: the first row with them, by their JSON text."""
    run: dict[str, Any] = field(default_factory=dict)
    """Settings that every row records under "run"."""

    def record(self, **settings: Any) -> None:
        """Adds settings, JSON values, to those that every row records under "run".

        Raises InputError when the file holds a row that was made with others.
        """
        self.run |= settings
        compared = {name: value for name, value in settings.items() if name not in _NOT_COMPARED}
        for where, before in self.earlier.values():
            for name, value in compared.items():
                if name not in before:
                    raise InputError(f"{where}: expected 'run' to have {name!r}: {_OLDER}")
                if before[name] != value:
                    raise InputError(f"{where}: {name} was {before[name]!r}, now it is {value!r}: it is of another run")

    def check_settings(self) -> None:
        """Checks that the file's rows have no settings but those of this run, once all are recorded.

        A judge that reasons records more than another one. Raises InputError for the first row that has others.
        """
        for where, before in self.earlier.values():
            if more := [name for name in before if name not in self.run]:
                raise InputError(f"{where}: {more[0]} was {before[more[0]]!r}, now there is none: it is of another run")

    def check_input(self, key: str, input_digest: str) -> None:
        """Checks that a row that the file already holds was made of these texts. Raises InputError where it was not."""
        row = self.done[key]
        if row.input_digest is None:
            raise InputError(f"{row.where}: expected a field {INPUT_DIGEST!r}: {_OLDER}")
        if row.input_digest != input_digest:
            raise InputError(f"{row.where}: prompt or responses of id {key} are others now: it is of another run")

    def check_keys(self, keys: Collection[str]) -> None:
        """Checks that every row that the file already holds is of the input, which has these keys.

        Raises InputError for the first that is not.
        """
        for key, row in self.done.items():
            if key not in keys:
                raise InputError(f"{row.where} holds id {key}, which the input lacks: it is of another run")

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends a row with its settings, as `append`."""
        self.append({**row, "run": self.run})

    def append(self, row: Mapping[str, Any]) -> None:
        """Appends a row and flushes it.

        Raises InputError when it cannot be written, and when somebody else has changed the file.
        """
        data = json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        if self.size is not None:
            self._check_unchanged()
        try:
            if self.size is not None and self.size > self.whole:
                self.file.truncate(self.whole)
            _write_all(self.file, data)
        except BrokenPipeError:
            raise
        except OSError as error:
            if self.size is not None:
                os.ftruncate(self.file.fileno(), self.whole)  # half a row helps nobody
            raise InputError(f"cannot write {self.name}: {error.strerror}") from None
        self.whole += len(data)
        self.size = None if self.size is None else self.whole

    def _check_unchanged(self) -> None:
        found = os.fstat(self.file.fileno())
        try:
            is_there = os.path.samestat(found, os.stat(self.name))
        except OSError:
            is_there = False
        if not is_there:
            raise InputError(f"output {self.name} was removed or replaced while this run wrote it")
        if found.st_size != self.size:
            raise InputError(
                f"output {self.name} was changed by another program: expected {self.size} bytes, found {found.st_size}"
            )


@contextmanager
def open_output(path: str, source: str, resume: bool, key: str = "id") -> Iterator[Output]:
    """Opens and locks the output for the rows of `source` as a context; "-" is standard output.

    With `resume`, the rows that the file already holds count as done. `key` is the first field of an output row, which
    identifies it. A file that this context created and nobody wrote to is removed at its end.

    Raises InputError when the file holds something and `resume` is not set, when it holds anything but rows of these
    commands or two with one key, when another run writes it, and when it is the input file.
    """
    if path == "-" or _is_stream(path):
        if resume:
            raise InputError("--resume: expected --output FILE, what went to a stream cannot be read back")
        with _stream(path) as output:
            yield output
        return
    if os.path.exists(source) and os.path.exists(path) and os.path.samefile(path, source):
        raise InputError(f"output {path} is the input: name another file")
    file, is_new = _open_locked(path)
    with file:
        try:
            if not resume and os.fstat(file.fileno()).st_size:
                raise InputError(f"output {path} is there already: go on with --resume, or name another file")
            yield _read_output(path, file, key)
        finally:
            if is_new and not os.fstat(file.fileno()).st_size:
                os.unlink(path)  # while it is locked, so that nobody else writes to it


def _is_stream(path: str) -> bool:
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


@contextmanager
def _stream(path: str) -> Iterator[Output]:
    if path == "-":
        if sys.stdout is None:
            raise InputError("standard output is closed: expected --output FILE")
        yield Output("standard output", sys.stdout.buffer)
        return
    try:
        file = open(path, "wb", buffering=0)  # noqa: SIM115 - the next line is its context
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None
    with file:
        yield Output(path, file)


def _open_locked(path: str) -> tuple[IO[bytes], bool]:
    """Opens a file for reading and appending, and locks it -> the file, and whether it is new."""
    while True:
        is_new = not os.path.lexists(path)
        try:
            file = open(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666), "r+b", buffering=0)  # noqa: SIM115
        except OSError as error:
            folder = os.path.dirname(path)
            reason = error.strerror if os.path.isdir(folder or ".") else f"there is no folder {folder}"
            raise InputError(f"cannot write {path}: {reason}") from None
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise InputError(f"output {path} is written by another run: wait for it, or name another file") from None
        except OSError as error:
            log.warning("output %s cannot be locked (%s): start no second run on it", path, error.strerror)
        # Another run may have removed it, empty as it was, between the two calls.
        if os.path.exists(path) and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            return file, is_new
        file.close()


def _read_output(path: str, file: IO[bytes], key: str) -> Output:
    """Reads what the file holds. Raises InputError for anything but rows that these commands wrote, once each."""
    output, size = Output(path, file), 0
    start = f'{{"{key}": '.encode()
    # A second opening for a buffered reader; the lock is that of the first.
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            size += len(line)
            where = f"{path} line {number}"
            if not line.endswith(b"\n"):
                if not start.startswith(line[: len(start)]):
                    raise InputError(f"{where}: expected the start of a row that this command wrote")
                break
            output.whole += len(line)
            try:
                row = json.loads(line)
                row_key, digest, run = id_key(row[key]), row.get(INPUT_DIGEST), dict(row["run"])
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                raise InputError(f"{where}: expected a row that this command wrote, with {key!r} and 'run'") from None
            if row_key in output.done:
                raise InputError(
                    f"{where}: expected one row for each {key}, {row_key} is also that of {output.done[row_key].where}"
                )
            output.done[row_key] = DoneRow(where, digest)
            output.earlier.setdefault(json.dumps(run, sort_keys=True), (where, run))
    output.size = size
    return output


def _write_all(file: IO[bytes], data: bytes) -> None:
    """Writes all of `data`: an unbuffered file may take a part at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[file.write(rest) :]
    file.flush()
