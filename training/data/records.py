"""Pairs for training and evaluation: one record a row, read as a stream.

source name -> sources.find_source -> rows.read_source_rows -> formats.parse_row -> PairRecord
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gram_fast.errors import InputError
from gram_fast.json_rows import OnBad
from gram_fast.text.prompts import PairTemplate
from gram_fast.training.data.formats import Label, Layout, parse_row
from gram_fast.training.data.rows import read_source_rows
from gram_fast.training.data.sources import find_source


@dataclass(frozen=True)
class PairRecord:
    """A prompt with two responses to it."""

    prompt: str
    response_a: str
    response_b: str
    preferred: Label | None
    """None: an unlabeled pair. Of a row with chosen and rejected, "A" always: the order is balanced later."""
    where: str
    """The row that it is of, for messages: "pairs.jsonl line 7"."""


def read_pair_records(
    source: str, *, template: PairTemplate, dataset_info: str | None = None, skip_bad: OnBad | None = None
) -> Iterator[PairRecord]:
    """All pairs of a source, in order, without holding more than a JSON array's text or a few hundred rows.

    `source`: a JSON lines, JSON or parquet file; a name in the LLaMA-Factory file `dataset_info`; a folder or a name on
    the hub, `org/name` or `org/name:split`. docs/data.md shows the rows that are understood. `template` takes apart the
    judge prompts of GRAM's stage 2. `skip_bad` is given the error of a bad row, which is then passed over.

    Raises InputError, on reading: for a source that is not there or breaks off, whatever `skip_bad`; and for a bad row,
    naming its place and field.
    """
    found = find_source(source, dataset_info)
    on_bad = skip_bad or _refuse
    for where, row in read_source_rows(found, on_bad):
        try:
            record = _record(where, row, found.layout, template)
        except InputError as error:
            on_bad(error)
        else:
            yield record


def _record(where: str, row: Any, layout: Layout | None, template: PairTemplate) -> PairRecord:
    try:
        return PairRecord(*parse_row(row, layout, template), where)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _refuse(error: InputError) -> None:
    raise error
