"""Statistics of a set of pairs: counts, lengths, label balance, duplicates and overlap with an evaluation set.

The data is read once as a stream. For each pair only 64-bit hashes and a few numbers are kept, about 50 bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from gram_fast.errors import InputError
from gram_fast.text.prompts import PairTemplate
from gram_fast.text.tokens import PairTokenizer
from gram_fast.training.data.records import PairRecord, read_pair_records

# Most examples in a finding.
_SHOWN = 5
# Pairs tokenized in one call.
_BATCH = 256
# Seconds before the progress bar appears.
_PROGRESS_DELAY = 2
# Kept of each pair. `number`: line or row in its file. `prefers`: 1 for A, -1 for B, 0 for none. `winner`: the same
# with the lexicographically smaller response in place of A, hence the same in either order. The last three are hashes.
_FACTS = np.dtype(
    [("number", "i8"), ("prefers", "i1"), ("winner", "i1"), ("tokens", "i4")]
    + [(f"{name}_characters", "i4") for name in ("prompt", "a", "b", "rationale")]
    + [(name, "u8") for name in ("pair", "prompt", "plain_prompt")]
)


@dataclass(frozen=True)
class Finding:
    """Number of rows with some property, and the places of the first few."""

    count: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class LengthSummary:
    """Minimum, median, 95th percentile and maximum of many lengths; each is one of the lengths."""

    min: int
    median: int
    p95: int
    max: int


@dataclass(frozen=True)
class Overlap:
    """Contamination: rows of an evaluation set that also occur in the training set."""

    source: str
    rows: int
    """All rows, bad ones and ties included."""
    bad: Finding
    ties: Finding
    pairs: Finding
    """Rows with prompt and responses, in either order, of a training row."""
    prompts: Finding
    """Rows with the prompt of a training row."""
    plain_prompts: Finding
    """Rows with the prompt of a training row, apart from case and white space."""


@dataclass(frozen=True)
class DataReport:
    """Result of `check_data`; characters are code points, tokens are those of the whole text that the judge reads."""

    source: str
    rows: int
    """All rows, bad ones and ties included."""
    labeled: int
    unlabeled: int
    bad: Finding
    ties: Finding
    """Rows that say that neither response is better, of which training learns nothing."""
    rationales: int
    """Rows with a rationale."""
    prefers_a: int
    """Labeled rows that prefer A, among them all rows with chosen and rejected."""
    prefers_longer: int
    """Labeled rows whose preferred response has more characters."""
    prefers_shorter: int
    empty_responses: int
    """Rows with an empty response."""
    prompt_characters: LengthSummary | None
    response_characters: LengthSummary | None
    """Lengths of all responses, two for each row."""
    pair_characters: LengthSummary | None
    """Prompt and both responses together. Lengths are None when there is no good row."""
    rationale_characters: LengthSummary | None
    """None where no row has a rationale."""
    pair_tokens: LengthSummary | None
    """None without a tokenizer."""
    over_max_length: Finding | None
    """Rows of more than `max_length` tokens; None without `max_length`."""
    repeated_pairs: Finding
    """Rows with prompt and responses, in either order, of an earlier row."""
    contradictions: Finding
    """Pairs for which two labeled rows prefer different responses."""
    repeated_prompts: Finding
    """Rows with the prompt of an earlier row."""
    against: Overlap | None


def check_data(
    source: str,
    *,
    template: PairTemplate,
    tokenizer: PairTokenizer | None = None,
    max_length: int | None = None,
    against: str | None = None,
    dataset_info: str | None = None,
    include_reasoning: bool = False,
) -> DataReport:
    """Reads a data set and reports its statistics; bad rows are counted in the report.

    Args:
        source: name of the data set, as for `read_pair_records`.
        template: the judge's prompt, which token counts include.
        tokenizer: counts tokens; without one, lengths are in characters alone.
        max_length: longest pair in tokens that training would take; pairs over it are reported.
        against: name of an evaluation set that is checked for overlap.
        dataset_info: path of a LLaMA-Factory dataset_info.json.
        include_reasoning: as for `read_pair_records`.

    Raises InputError for a source that cannot be read or has no rows, and for `max_length` without a tokenizer.
    """
    if max_length is not None and tokenizer is None:
        raise InputError("max_length: expected a tokenizer as well, in whose tokens to count")
    how = {"template": template, "dataset_info": dataset_info, "include_reasoning": include_reasoning}
    pairs = _PairTable.read(source, tokenizer, **how)
    facts = pairs.facts
    prefers = facts["prefers"]
    longer = prefers * np.sign(facts["a_characters"] - facts["b_characters"])
    tokens = facts["tokens"]
    rationales = facts["rationale_characters"]
    responses = np.stack([facts["a_characters"], facts["b_characters"]])
    return DataReport(
        source=source,
        rows=pairs.rows,
        labeled=_count(prefers != 0),
        unlabeled=_count(prefers == 0),
        bad=pairs.bad,
        ties=pairs.ties,
        rationales=_count(rationales > 0),
        prefers_a=_count(prefers > 0),
        prefers_longer=_count(longer > 0),
        prefers_shorter=_count(longer < 0),
        empty_responses=_count((responses == 0).any(axis=0)),
        prompt_characters=_lengths(facts["prompt_characters"]),
        response_characters=_lengths(responses),
        pair_characters=_lengths(facts["prompt_characters"] + responses.sum(axis=0)),
        rationale_characters=_lengths(rationales[rationales > 0]),
        pair_tokens=_lengths(tokens) if tokenizer else None,
        over_max_length=None if max_length is None else pairs.where(tokens > max_length),
        repeated_pairs=pairs.repeats("pair"),
        contradictions=pairs.contradictions(),
        repeated_prompts=pairs.repeats("prompt"),
        against=None if against is None else _overlap(pairs, _PairTable.read(against, None, **how)),
    )


class _Counted:
    """Counts what is left out and keeps the first few."""

    def __init__(self) -> None:
        self._count = 0
        self._examples: list[str] = []

    def add(self, example: object) -> None:
        self._count += 1
        if self._count <= _SHOWN:
            self._examples.append(str(example))

    @property
    def finding(self) -> Finding:
        return Finding(self._count, tuple(self._examples))


@dataclass(frozen=True)
class _PairTable:
    """What is kept of all good rows of a data source."""

    source: str
    facts: NDArray[Any]
    """[N] of dtype _FACTS, in row order."""
    unit: str
    """Unit of `number`: "line" or "row"."""
    bad: Finding
    ties: Finding

    @classmethod
    def read(cls, source: str, tokenizer: PairTokenizer | None, **how: Any) -> "_PairTable":
        """Reads a data source; `tokens` are 0 without a tokenizer. Raises InputError for one without rows.

        `how`: arguments of `read_pair_records`.
        """
        bad, ties = _Counted(), _Counted()
        unit, batches = "", [np.empty(0, _FACTS)]
        read = read_pair_records(source, skip_bad=bad.add, on_tie=ties.add, **how)
        records = iter(tqdm(read, desc=source, unit=" pairs", delay=_PROGRESS_DELAY, disable=None))
        while batch := list(islice(records, _BATCH)):
            batches.append(_facts(batch, tokenizer))
            unit = batch[0].where.split()[-2]
        pairs = cls(source, np.concatenate(batches), unit, bad.finding, ties.finding)
        if not pairs.rows:
            name = "standard input" if source == "-" else source
            raise InputError(f"{name}: expected rows, found none")
        return pairs

    @property
    def rows(self) -> int:
        """Number of rows, bad ones and ties included."""
        return len(self.facts) + self.bad.count + self.ties.count

    def name(self, index: Any) -> str:
        """Place of a good row, such as "line 7"."""
        return f"{self.unit} {self.facts['number'][index]}"

    def where(self, mask: NDArray[np.bool_]) -> Finding:
        """Good rows that a mask [N] selects."""
        return Finding(_count(mask), tuple(map(self.name, np.flatnonzero(mask)[:_SHOWN])))

    def repeats(self, column: str) -> Finding:
        """Rows whose hash in `column` equals that of an earlier row."""
        _, first, group = np.unique(self.facts[column], return_index=True, return_inverse=True)
        earliest = first[group]
        repeated = np.flatnonzero(earliest < np.arange(len(earliest)))
        examples = (f"{self.name(index)} repeats {self.name(earliest[index])}" for index in repeated[:_SHOWN])
        return Finding(len(repeated), tuple(examples))

    def contradictions(self) -> Finding:
        """Pairs for which one row prefers one response and another row the other."""
        pair, winner = self.facts["pair"], self.facts["winner"]
        both = np.intersect1d(pair[winner > 0], pair[winner < 0])
        rows = ([np.flatnonzero((pair == key) & (winner == side))[0] for side in (1, -1)] for key in both[:_SHOWN])
        return Finding(
            len(both), tuple(" contradicts ".join(map(self.name, sorted(two, reverse=True))) for two in rows)
        )


def _facts(records: Sequence[PairRecord], tokenizer: PairTokenizer | None) -> NDArray[Any]:
    """Reduces records to an array [N] of dtype _FACTS."""
    texts = [(record.prompt, record.response_a, record.response_b) for record in records]
    tokens = [len(ids) for ids in tokenizer.whole_ids(texts)] if tokenizer else [0] * len(records)
    return np.array([_row(record, count) for record, count in zip(records, tokens, strict=True)], _FACTS)


def _row(record: PairRecord, tokens: int) -> tuple[int, ...]:
    prompt, a, b = record.prompt, record.response_a, record.response_b
    prefers = {"A": 1, "B": -1, None: 0}[record.preferred]
    return (
        int(record.where.split()[-1]),
        prefers,
        prefers if a < b else -prefers,
        tokens,
        len(prompt),
        len(a),
        len(b),
        len(record.rationale or ""),
        _hash(prompt, min(a, b), max(a, b)),
        _hash(prompt),
        _hash(" ".join(prompt.casefold().split())),
    )


def _hash(*texts: str) -> int:
    digest = blake2b(digest_size=8)
    for text in texts:
        data = text.encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return int.from_bytes(digest.digest(), "little")


def _overlap(training: _PairTable, evaluation: _PairTable) -> Overlap:
    def shared(column: str) -> Finding:
        return evaluation.where(np.isin(evaluation.facts[column], training.facts[column]))

    return Overlap(
        evaluation.source,
        evaluation.rows,
        evaluation.bad,
        evaluation.ties,
        pairs=shared("pair"),
        prompts=shared("prompt"),
        plain_prompts=shared("plain_prompt"),
    )


def _count(mask: NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(mask))


def _lengths(values: NDArray[np.int32]) -> LengthSummary | None:
    if not values.size:
        return None
    return LengthSummary(*map(int, np.quantile(values, (0, 0.5, 0.95, 1), method="inverted_cdf")))
