"""Rows of pairs as files of self-training and of `gram-fast prove` have them, and the seeds of their answers."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gram_fast.errors import InputError
from gram_fast.rows.bad_rows import OnBad
from gram_fast.text.digest import digest
from gram_fast.training.data.records import PairRecord


@dataclass(frozen=True)
class PairRow:
    """A pair under an id of its own."""

    id: str | int
    pair: PairRecord

    @property
    def digest(self) -> str:
        """Digest of its texts and label."""
        return digest([self.pair.prompt, self.pair.response_a, self.pair.response_b, self.pair.preferred])

    @property
    def characters(self) -> int:
        """Characters of its texts."""
        return len(self.pair.prompt) + len(self.pair.response_a) + len(self.pair.response_b)

    @property
    def fields(self) -> dict[str, Any]:
        """The fields of an output row that training reads, without a rationale."""
        pair = self.pair
        texts = {"prompt": pair.prompt, "responses": [pair.response_a, pair.response_b]}
        return {"id": self.id, **texts, **({} if pair.preferred is None else {"label": pair.preferred})}

    @classmethod
    def parse(cls, row: dict[str, Any], where: str) -> "PairRow":
        """Reads what `fields` gives; of a row that self-training wrote itself."""
        response_a, response_b = row["responses"]
        return cls(row["id"], PairRecord(row["prompt"], response_a, response_b, row.get("label"), where))


def with_ids(pairs: Iterator[PairRecord], on_bad: OnBad) -> Iterator[PairRow]:
    """Pairs with their rows' own ids, else the number of the line or row.

    `on_bad` receives the error of a row with the id of an earlier one.
    """
    # Numbers, as there is one for each row of an input that may not fit memory.
    number_of: dict[str | int, int] = {}
    for pair in pairs:
        source, _, text = pair.where.rpartition(" ")
        number = int(text)
        row_id = number if pair.id is None else pair.id
        if (first := number_of.setdefault(row_id, number)) != number:
            on_bad(InputError(f"{pair.where}: expected an id of its own, {row_id!r} is also that of {source} {first}"))
        else:
            yield PairRow(row_id, pair)


def labeled(pairs: Iterator[PairRecord], on_bad: OnBad) -> Iterator[PairRecord]:
    """Labeled pairs; `on_bad` receives the error of one without a label."""
    for pair in pairs:
        if pair.preferred is None:
            on_bad(InputError(f"{pair.where}: expected a labeled pair, this one has no label"))
        else:
            yield pair


def derived_seed(*parts: str | int) -> int:
    """A seed in [0, 2**31) of what it is for: (seed, round, what), say."""
    text = json.dumps(parts, ensure_ascii=True).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "little") >> 1
