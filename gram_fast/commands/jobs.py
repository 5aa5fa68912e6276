"""Reads the input of the scoring commands and scores it, many rows in a call.

An input row is {"id", "prompt", "responses"}; prompt and responses are strings or lists of chat messages. A row without
"id" is identified by the number of its line or row. Rows are read and checked ahead of scoring; writers.py writes.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from gram_fast.commands.chunks import CHARACTERS, chunks, score_chunk
from gram_fast.commands.output import Output, id_key
from gram_fast.comparing.comparer import Comparer
from gram_fast.comparing.costs import costs
from gram_fast.comparing.modes import in_mode
from gram_fast.errors import GramFastError, InputError
from gram_fast.ranking.tournament import Strategy
from gram_fast.rows.ahead import ReadAhead
from gram_fast.rows.bad_rows import OnBad, get_field
from gram_fast.rows.source import read_rows
from gram_fast.text.digest import digest
from gram_fast.text.group import Group, Names
from gram_fast.text.messages import read_text, to_text

_RESPONSE = re.compile(r"response_(\d+|[a-zA-Z])")


# Characters that are read ahead. A file of less is checked whole before a model is loaded.
_AHEAD = 2**25
# Seconds for which a pipe or terminal is read before a model is loaded, however many rows come: it may have no end.
_FIRST_SECONDS = 1.0


class Keyed(Protocol):
    """An input row, as what has been done of it is told and what is read ahead is counted."""

    @property
    def id(self) -> str | int:
        """Of this row alone."""

    @property
    def digest(self) -> str:
        """Digest of its texts."""

    @property
    def characters(self) -> int:
        """Characters held, to a few."""


KeyedRow = TypeVar("KeyedRow", bound=Keyed)


@dataclass(frozen=True)
class JobRow:
    """One input row: a prompt with its candidate responses."""

    id: str | int
    prompt: Any
    responses: list[Any]
    group: Group
    where: str
    """Place in messages, such as "candidates.jsonl line 7"."""

    @property
    def digest(self) -> str:
        """Digest of the texts of prompt and responses, reasoning included."""
        texts = (self.prompt, *self.responses)
        return digest([read_text(text, "text", include_reasoning=True)[0] for text in texts])

    @property
    def characters(self) -> int:
        """Characters held, to a few: of prompt and responses as they came, with what the judge does not read."""
        return len(repr((self.prompt, self.responses)))


@dataclass(frozen=True)
class Job:
    """What a command asks of its rows."""

    strategy: Strategy
    score: Callable[[Sequence[JobRow], Comparer], Sequence[Any]]
    """Results of many rows in one call, such as Rankings."""
    num_responses: int | None = None
    """Number of responses that every row must have, where it is fixed."""
    names: Names = field(default_factory=Names)
    """What prompt and responses are called in messages and flags."""
    places: int | None = None
    """Places of a ranking that are decided, and shown in a table; None for all."""
    modes: tuple[str, ...] = ("full",)
    """Modes in which pairs are read."""

    def check_judge(self, comparer: Comparer) -> None:
        """Raises errors like `in_mode` on a judge that does not have the job's modes, which is no row's fault."""
        for mode in self.modes:
            in_mode(comparer, mode)


Write = Callable[[JobRow, Any, int], None]
"""Writes the result of a row, whose stats are those of a number of rows together: (row, result, number)."""

Scored = tuple[JobRow, tuple[Any, int] | GramFastError]
"""A row and its result, with the number of rows that share its stats; or the error of a row that cannot be scored."""


class Scorer(Protocol):
    """Scores chunks of rows, each in one call."""

    @property
    def tokens_at_once(self) -> int:
        """Of the judge, or of each, as of a `Comparer`."""

    def score(self, chunks: Iterator[list[JobRow]], is_waiting: Callable[[], bool]) -> Iterator[Iterable[Scored]]:
        """Yields the rows of each chunk with their results, in order.

        `is_waiting`: whether the next chunk would have to be waited for.
        """


@dataclass(frozen=True)
class OneJudge:
    """Scores chunks with a judge of this process, one after the other, when they are asked for."""

    job: Job
    comparer: Comparer

    @property
    def tokens_at_once(self) -> int:
        """Of the judge."""
        return self.comparer.tokens_at_once

    def score(self, chunks: Iterator[list[JobRow]], is_waiting: Callable[[], bool]) -> Iterator[Iterable[Scored]]:
        """Yields rows as they are scored."""
        return (score_job_chunk(chunk, self.job, self.comparer) for chunk in chunks)


def score_job_chunk(chunk: Sequence[JobRow], job: Job, comparer: Comparer) -> Iterator[Scored]:
    """Scores a chunk in one call, or in parts where rows of it cannot be scored."""

    def score(rows: Sequence[JobRow]) -> list[tuple[Any, int]]:
        return [(result, len(rows)) for result in job.score(rows, comparer)]

    return score_chunk(chunk, score, lambda row: row.where)


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
    path: str, job: Job, on_bad: OnBad, columns: Columns = MappingProxyType({}), include_reasoning: bool = False
) -> Iterator[JobRow]:
    """Yields the rows of a source, as `read_rows`, checked.

    `on_bad` receives the error of a bad row, which names its place. `columns`: other names of fields. Raises InputError
    when the source cannot be read.
    """
    # Numbers, as there is one for each row of an input that may not fit memory.
    number_of: dict[str | int, int] = {}
    for where, value in read_rows(path, on_bad):
        source, _, number = where.rpartition(" ")
        try:
            row = _parse_job_row(where, value, int(number), job, columns, include_reasoning)
            if (first := number_of.setdefault(row.id, int(number))) != int(number):
                raise InputError(f"{where}: expected an id of its own, {row.id!r} is also that of {source} {first}")
        except InputError as error:
            on_bad(error)
        else:
            yield row


def _parse_job_row(where: str, row: Any, number: int, job: Job, columns: Columns, include_reasoning: bool) -> JobRow:
    if not isinstance(row, dict):
        raise InputError(f"{where}: expected a JSON object, got {type(row).__name__}")
    try:
        prompt, responses = get_field(row, *columns.get("prompt", ["prompt"])), _responses(row, columns)
        row_id = get_field(row, *columns["id"]) if "id" in columns else row.get("id", number)
        if not isinstance(row_id, str | int) or isinstance(row_id, bool):
            raise InputError(f"expected 'id' to be a string or an integer, got {type(row_id).__name__}")
        to_text(str(row_id), "id")
        if isinstance(responses, list) and job.num_responses not in (None, len(responses)):
            raise InputError(f"responses: expected {job.num_responses}, got {len(responses)}")
        at_least = 1 if job.strategy.verifies else 2
        group = Group.of(prompt, responses, job.names, at_least=at_least, include_reasoning=include_reasoning)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return JobRow(row_id, prompt, responses, group, where)


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


def pending_rows(rows: Iterable[KeyedRow], output: Output) -> Iterator[KeyedRow]:
    """Yields the rows that the output does not hold.

    Raises InputError where it holds a row of other texts under the same id and, at the end, one that is not among them.
    """
    found = set()
    for row in rows:
        if (key := id_key(row.id)) in output.done:
            output.check_input(key, row.digest)
            found.add(key)
        else:
            yield row
    output.check_keys(found)


@contextmanager
def read_ahead(rows: Iterable[KeyedRow], is_live: bool) -> Iterator[ReadAhead[KeyedRow]]:
    """Reads rows in a thread during the context, which begins when the input has ended or is far ahead.

    `is_live`: rows come as somebody writes them; it begins after a second at most. Raises the error of a row that was
    read until then.
    """
    ahead = ReadAhead(rows, lambda row: row.characters, _AHEAD)
    try:
        ahead.settle(_FIRST_SECONDS if is_live else None)
        if ahead.error is not None:
            raise ahead.error
        yield ahead
    finally:
        ahead.close()


def score_rows(
    rows: ReadAhead[JobRow],
    job: Job,
    scorer: Scorer,
    write: Write,
    on_bad: Callable[[GramFastError], None],
    *,
    already: int = 0,
    is_live: bool = False,
    bar_is_hidden: bool = False,
) -> int:
    """Scores rows in chunks, writes the result of each, in order, and returns the number written.

    Shows a progress bar on a terminal, unless `bar_is_hidden`, in which `already` rows are done. The error of a row
    that cannot be scored goes to `on_bad`, which raises to stop or returns to skip the row. `is_live`: what has been
    read is scored when the next row is not there yet.
    """
    num_pairs = cache(job.strategy.num_pairs)

    def cost(row: JobRow) -> int:
        return costs([row.group], [num_pairs(len(row.group.texts))])[0]

    def is_waiting() -> bool:
        return is_live and rows.is_waiting

    written = 0
    with tqdm(initial=already, unit="row", disable=bar_is_hidden or None) as bar:
        least = CHARACTERS * scorer.tokens_at_once
        for chunk in scorer.score(chunks(rows, cost, least, is_waiting), is_waiting):
            num_rows = 0
            for row, found in chunk:
                num_rows += 1
                if isinstance(found, GramFastError):
                    on_bad(found)
                    continue
                write(row, *found)
                written += 1
            if rows.has_ended:
                bar.total = already + rows.count
            bar.update(num_rows)
    return written
