"""Reads JSON Lines input of the scoring commands and scores it row by row.

An input row is {"id", "prompt", "responses"}; prompt and responses are strings or lists of chat messages. A row without
"id" is identified by its line number. The whole input is read and validated before scoring starts; output.py writes.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from gram_fast.commands.output import INPUT_DIGEST, Output, id_key
from gram_fast.errors import GramFastError, InputError
from gram_fast.json_rows import OnBad, not_json
from gram_fast.text.digest import digest
from gram_fast.text.group import Group
from gram_fast.text.messages import read_text, to_text


@dataclass(frozen=True)
class JobRow:
    """One input row: a prompt with its candidate responses."""

    id: str | int
    prompt: Any
    responses: list[Any]
    where: str
    """File and line in messages, such as "candidates.jsonl line 7"."""

    @property
    def digest(self) -> str:
        """Digest of the texts of prompt and responses, reasoning included."""
        texts = (self.prompt, *self.responses)
        return digest([read_text(text, "text", include_reasoning=True)[0] for text in texts])


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


def run_rows(
    rows: list[JobRow],
    score: Callable[[JobRow], dict[str, Any]],
    output: Output,
    on_bad: Callable[[GramFastError], None],
) -> int:
    """Scores every row that is not done, writes one output row for each, and returns the number written.

    Shows a progress bar. The error of a row that cannot be scored goes to `on_bad`, which raises to stop or returns to
    skip the row.
    """
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
                output.write({"id": row.id, **result, INPUT_DIGEST: row.digest})
                written += 1
            bar.update()
    return written
