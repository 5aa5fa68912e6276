"""Reads the input of the scoring commands and scores it row by row.

An input row is {"id", "prompt", "responses"}; prompt and responses are strings or lists of chat messages. A row without
"id" is identified by the number of its line or row. The whole input is read and validated before scoring starts;
output.py writes.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from tqdm import tqdm

from gram_fast.commands.output import INPUT_DIGEST, Output, id_key
from gram_fast.errors import GramFastError, InputError
from gram_fast.rows.bad_rows import OnBad, get_field
from gram_fast.rows.source import read_rows
from gram_fast.text.digest import digest
from gram_fast.text.group import Group
from gram_fast.text.messages import read_text, to_text

_RESPONSE = re.compile(r"response_(\d+|[a-zA-Z])")


@dataclass(frozen=True)
class JobRow:
    """One input row: a prompt with its candidate responses."""

    id: str | int
    prompt: Any
    responses: list[Any]
    where: str
    """Place in messages, such as "candidates.jsonl line 7"."""

    @property
    def digest(self) -> str:
        """Digest of the texts of prompt and responses, reasoning included."""
        texts = (self.prompt, *self.responses)
        return digest([read_text(text, "text", include_reasoning=True)[0] for text in texts])


Columns = Mapping[str, list[str]]
"""Names under which rows have id, prompt and responses; of responses, a field of all or a field each."""


def parse_columns(text: str) -> Columns:
    """Parses "prompt=question,responses=answer_1+answer_2". Raises InputError on any other form."""
    columns = {}
    for part in text.split(","):
        name, _, fields = part.strip().partition("=")
        if name in columns:
            raise InputError(f"columns: expected {name!r} once, got {text!r}")
        columns[name] = fields.split("+") if name == "responses" else [fields]
        if name not in ("id", "prompt", "responses") or "" in columns[name]:
            raise InputError(
                f"columns: expected id=NAME, prompt=NAME or responses=NAME+NAME, with commas between them, got {part!r}"
            )
    return columns


def read_job_rows(
    path: str,
    on_bad: OnBad,
    num_responses: int | None = None,
    at_least: int = 2,
    columns: Columns = MappingProxyType({}),
) -> list[JobRow]:
    """Reads all rows of a source, as `read_rows`.

    `on_bad` receives the error of a bad row, which names its place. `num_responses`: number of responses that every row
    must have; None for `at_least` or more. `columns`: other names of fields. Raises InputError when the source cannot
    be read.
    """
    rows: list[JobRow] = []
    line_of: dict[str, str] = {}
    for where, value in read_rows(path, on_bad):
        try:
            row = _parse_job_row(where, value, at_least, columns)
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


def _parse_job_row(where: str, row: Any, at_least: int, columns: Columns) -> JobRow:
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected a JSON object, got {type(row).__name__}")
    try:
        prompt, responses = get_field(row, *columns.get("prompt", ["prompt"])), _responses(row, columns)
        number = int(where.rpartition(" ")[2])
        row_id = get_field(row, *columns["id"]) if "id" in columns else row.get("id", number)
        if not isinstance(row_id, str | int) or isinstance(row_id, bool):
            raise InputError(f"expected 'id' to be a string or an integer, got {type(row_id).__name__}")
        to_text(str(row_id), "id")
        Group.of(prompt, responses, at_least=at_least)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return JobRow(row_id, prompt, responses, where)


def _responses(row: dict[str, Any], columns: Columns) -> Any:
    """The field of all responses, or the fields that hold one each, up to the last that is not null."""
    names = columns.get("responses", [])
    if not names and "responses" not in row:
        # As tables have them; by their numbers, not by the places of the columns.
        names = sorted(filter(_RESPONSE.fullmatch, row), key=lambda name: (len(name), name))
    elif len(names) < 2:
        return get_field(row, *(names or ["responses"]))
    values = [get_field(row, name) for name in names] or get_field(row, "responses")
    while values and values[-1] is None:
        values.pop()
    if None in values:
        name = names[values.index(None)]
        raise InputError(f"{name}: expected a response, as there is one in {names[len(values) - 1]}, found none")
    return values


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
