"""Reader of a run's data: named data sets as tokenized pairs, in memory or as a stream."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm

from gram_fast.errors import GramFastError, InputError
from gram_fast.rows.bad_rows import OnBad
from gram_fast.text.tokens import PairTokenizer
from gram_fast.training.config import RunConfig, Stage
from gram_fast.training.data import sequences
from gram_fast.training.data.records import PairRecord, read_pair_records
from gram_fast.training.data.sequences import PairEncoder, TokenizedPair
from gram_fast.training.data.stream import PairStream

log = logging.getLogger(__name__)


class DataReader:
    """Reads named data sets into datasets of tokenized pairs and logs how many pairs were left out."""

    def __init__(
        self, stage: Stage, config: RunConfig, tokenizer: PairTokenizer, encode: PairEncoder, logs: bool
    ) -> None:
        self._stage, self._config, self._tokenizer, self._encode = stage, config, tokenizer, encode
        self._logs = logs
        self._bad = self._long = 0

    def dataset(self, names: Sequence[str], key: str, stream: bool = False, seed: int = 0) -> Any:
        """Reads data sets into one dataset for the Trainer: a list in memory or, with `stream`, one without end."""
        if stream:
            return PairStream(lambda number: map(vars, self._tokenized(names, counts=number == 0)), seed)
        with tqdm(self._tokenized(names), unit=" pairs", desc=key, disable=None if self._logs else True) as bar:
            pairs = [vars(pair) for pair in bar]
        self.report(key)
        if not pairs:
            raise InputError(f"{key}: no pair of {', '.join(names)} is left to train on")
        return pairs

    def report(self, key: str) -> None:
        """Logs how many pairs were left out since the last report; for a stream, by this process in the first pass."""
        if self._long and self._logs:
            log.warning("%s: %d pairs longer than cutoff_len=%d left out", key, self._long, self._config.cutoff_len)
        if self._bad and self._logs:
            log.warning("%s: %d bad rows left out", key, self._bad)
        self._bad = self._long = 0

    def _tokenized(self, names: Sequence[str], counts: bool = True) -> Iterator[TokenizedPair]:
        on_bad, on_long = (self._on_bad, self._on_long) if counts else (_ignore, _ignore)
        records = self._records(names, on_bad if self._config.skip_bad else None)
        limit = self._config.cutoff_len
        bounded = sequences.without_endless(records, self._tokenizer, limit, on_long)
        return sequences.tokenize_pairs(bounded, self._encode, limit, on_long)

    def _records(self, names: Sequence[str], skip_bad: OnBad | None) -> Iterator[PairRecord]:
        count = 0
        for name in names:
            pairs = read_pair_records(
                name,
                template=self._tokenizer.template,
                dataset_info=self._config.dataset_info,
                skip_bad=skip_bad,
                include_reasoning=self._config.include_reasoning,
            )
            for record in pairs:
                if count == self._config.max_samples:
                    return
                if self._stage != "pretrain" and record.preferred is None:
                    raise InputError(f"{record.where}: {self._stage} wants labeled pairs, this one has no label")
                yield _alternated(record, count) if self._stage == "pretrain" else record
                count += 1

    def _on_bad(self, error: GramFastError) -> None:
        self._bad += 1
        if self._logs:
            log.warning("skipped: %s", error)

    def _on_long(self, record: PairRecord, length: int) -> None:
        self._long += 1


def _ignore(*left_out: object) -> None:
    """Counts nothing: in later passes, what is left out was counted in the first."""


def _alternated(record: PairRecord, number: int) -> PairRecord:
    """Swaps every second labeled pair, so that stage 1 does not learn that the better response comes first."""
    if record.preferred is None or number % 2 == 0:
        return record
    return PairRecord(record.prompt, record.response_b, record.response_a, None, record.where)
