"""Reader of a run's data: named data sets as tokenized pairs, in memory or as a stream."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from tqdm import tqdm

from gram_fast.errors import GramFastError, InputError
from gram_fast.text.tokens import PairTokenizer
from gram_fast.training.config import RunConfig, Stage
from gram_fast.training.data import sequences
from gram_fast.training.data.formats import Label
from gram_fast.training.data.records import PairRecord, read_pair_records
from gram_fast.training.data.sequences import PairEncoder, TokenizedPair
from gram_fast.training.data.stream import PairStream

log = logging.getLogger(__name__)


class DataReader:
    """Reads named data sets into datasets of tokenized pairs and logs how many pairs were left out."""

    def __init__(
        self, stage: Stage, config: RunConfig, tokenizer: PairTokenizer, encode: PairEncoder, seed: int, logs: bool
    ) -> None:
        """`seed`: of the order of a stream, and in stage `reason` of the orders in which pairs are shown."""
        self._stage, self._config, self._tokenizer, self._encode = stage, config, tokenizer, encode
        self._seed, self._logs = seed, logs
        self._left_out: Counter[str] = Counter()
        self.counts: dict[str, dict[str, Any]] = {}
        """Of each dataset in memory, by its key: `pairs`, and how many were `left_out`, by reason; JSON values."""

    def dataset(self, names: Sequence[str], key: str, stream: bool = False) -> Any:
        """Reads data sets into one dataset for the Trainer: a list in memory or, with `stream`, one without end."""
        if stream:
            return PairStream(lambda number: map(vars, self._tokenized(names, counts=number == 0)), self._seed)
        with tqdm(self._tokenized(names), unit=" pairs", desc=key, disable=None if self._logs else True) as bar:
            pairs = [vars(pair) for pair in bar]
        self.counts[key] = {"pairs": len(pairs), "left_out": dict(sorted(self._left_out.items()))}
        self.report(key)
        if not pairs:
            raise InputError(f"{key}: no pair of {', '.join(names)} is left to train on")
        return pairs

    def report(self, key: str) -> None:
        """Logs how many pairs were left out since the last report; for a stream, by this process in the first pass."""
        for what, count in self._left_out.items() if self._logs else ():
            log.warning("%s: %d %s left out", key, count, what)
        self._left_out.clear()

    def _tokenized(self, names: Sequence[str], counts: bool = True) -> Iterator[TokenizedPair]:
        records = self._in_order(self._records(names, counts))
        limit = self._config.cutoff_len

        def on_long(record: PairRecord, length: int) -> None:
            self._leave_out(f"pairs longer than cutoff_len={limit}", counts)

        bounded = sequences.without_endless(records, self._tokenizer, limit, on_long)
        return sequences.tokenize_pairs(bounded, self._encode, limit, on_long)

    def _in_order(self, records: Iterator[PairRecord]) -> Iterator[PairRecord]:
        """The records with each pair's responses in the order in which the stage shows it first."""
        if self._stage == "pretrain":
            return (_alternated(record, number) for number, record in enumerate(records))
        return drawn_orders(records, self._seed) if self._stage == "reason" else records

    def _records(self, names: Sequence[str], counts: bool) -> Iterator[PairRecord]:
        """Reads the pairs that the stage learns from. `counts`: what is left out; in later passes it was counted."""

        def on_bad(error: GramFastError) -> None:
            self._leave_out("bad rows", counts)
            if self._logs and counts:
                log.warning("skipped: %s", error)

        count = 0
        for name in names:
            pairs = read_pair_records(
                name,
                template=self._tokenizer.template,
                dataset_info=self._config.dataset_info,
                skip_bad=on_bad if self._config.skip_bad else None,
                on_tie=lambda where: self._leave_out("ties", counts),
                include_reasoning=self._config.include_reasoning,
            )
            for record in pairs:
                if count == self._config.max_samples:
                    return
                if self._stage != "pretrain" and record.preferred is None:
                    raise InputError(f"{record.where}: {self._stage} wants labeled pairs, this one has no label")
                if self._stage == "prove" and record.rationale is None:
                    self._leave_out("pairs without a rationale", counts)
                    continue
                yield record if self._stage in ("reason", "prove") else replace(record, rationale=None)
                count += 1

    def _leave_out(self, what: str, counts: bool) -> None:
        if counts:
            self._left_out[what] += 1


def _alternated(record: PairRecord, number: int) -> PairRecord:
    """Swaps every second labeled pair, so that stage 1 does not learn that the better response comes first."""
    return record if record.preferred is None or number % 2 == 0 else swapped(record)


def drawn_orders(records: Iterable[PairRecord], seed: int) -> Iterator[PairRecord]:
    """Labeled pairs, those without a rationale in an order drawn by the seed.

    Of two such in succession one prefers A and the other B, so that the labels are balanced. A rationale names A and B:
    its pair stays as it is.
    """
    rng = np.random.default_rng(seed)
    drawn: list[Label] = []
    for record in records:
        if record.rationale is None:
            drawn = drawn or rng.permutation(("A", "B")).tolist()
            yield record if record.preferred == drawn.pop() else swapped(record)
        else:
            yield record


def swapped(record: PairRecord) -> PairRecord:
    """The pair, which has no rationale, with its responses the other way round."""
    preferred: Label | None = {"A": "B", "B": "A", None: None}[record.preferred]  # type: ignore[assignment]
    return replace(record, response_a=record.response_b, response_b=record.response_a, preferred=preferred)
