"""Reader of preference data: streams one PairRecord for each row of a data source in any supported format.

source name -> sources.find_source -> gram_fast/rows -> formats.parse_row -> PairRecord
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from gram_fast.errors import InputError
from gram_fast.rows.bad_rows import OnBad, raise_bad_row
from gram_fast.rows.source import read_rows
from gram_fast.text.prompts import PairTemplate
from gram_fast.training.data.formats import Label, Layout, TieError, parse_row
from gram_fast.training.data.sources import find_source


@dataclass(frozen=True)
class PairRecord:
    """A prompt with two responses and, for labeled data, which of them is preferred."""

    prompt: str
    response_a: str
    response_b: str
    preferred: Label | None
    """None for an unlabeled pair; always "A" for a row with chosen and rejected, as training balances the order."""
    where: str
    """Place of the row, for messages: "pairs.jsonl line 7"."""
    rationale: str | None = None
    """Text of the thought that leads to the label, without tags; it names A and B."""
    id: str | int | None = None
    """The row's own "id", where it has one that is text or an integer."""


OnTie = Callable[[str], None]
"""Callback that receives the place of a tie, which is left out."""


def read_pair_records(
    source: str,
    *,
    template: PairTemplate,
    dataset_info: str | None = None,
    skip_bad: OnBad | None = None,
    on_tie: OnTie | None = None,
    include_reasoning: bool = False,
) -> Iterator[PairRecord]:
    """Streams all pairs of a data source, in order.

    At most the text of one JSON array, or a few hundred rows of other sources, is in memory.

    Args:
        source: a file of any format that `read_rows` reads; a name in `dataset_info`; a folder; or a data set on the
            Hugging Face hub, `org/name` or `org/name:split`. docs/data.md shows the row formats.
        template: the judge's prompt in which GRAM's stage 2 rows are written.
        dataset_info: path of a LLaMA-Factory dataset_info.json.
        skip_bad: receives the error of each bad row, which is then skipped.
        on_tie: receives the place of each tie, which is then left out; without it, a tie is a bad row.
        include_reasoning: texts of chat messages include their reasoning; else a warning says that it is left out.

    Raises InputError, during iteration, for a bad row without `skip_bad`, naming its place and field, and in any case
    for a verifier's template and for a source that does not exist or breaks off.
    """
    if template.is_verifier:
        raise InputError(
            "preset: expected a prompt that shows a pair, got a verifier's, which training has no data for"
        )
    found = find_source(source, dataset_info)
    on_bad = skip_bad or raise_bad_row
    for where, row in read_rows(found.rows, on_bad):
        try:
            record = _record(where, row, found.layout, template, include_reasoning)
        except TieError as tie:
            if on_tie is None:
                on_bad(tie)
            else:
                on_tie(where)
        except InputError as error:
            on_bad(error)
        else:
            yield record


def _record(where: str, row: Any, layout: Layout | None, template: PairTemplate, include_reasoning: bool) -> PairRecord:
    try:
        pair = parse_row(row, layout, template, include_reasoning)
    except InputError as error:
        raise type(error)(f"{where}: {error}") from None
    own = row.get("id")
    row_id = own if isinstance(own, str | int) and not isinstance(own, bool) else None
    return PairRecord(pair.prompt, pair.response_a, pair.response_b, pair.preferred, where, pair.rationale, row_id)
