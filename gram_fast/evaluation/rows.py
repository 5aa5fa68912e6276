"""Readers of benchmark data files and result files, which are validated as a whole.

A result file has GRAM's format: the fields of a pair, `score_chosen` and `score_rejected` in [0, 1], and `correct`,
which is score_chosen > score_rejected. Files written by gram_fast also have one score for each order, in SLOT_FIELDS.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from gram_fast.errors import InputError, one_line
from gram_fast.rows.bad_rows import OnBad, get_field, raise_bad_row
from gram_fast.rows.source import read_rows
from gram_fast.text.messages import Prompt, to_text

Fields = dict[str, Any]

SLOT_FIELDS = ("p_chosen_in_slot_a", "p_chosen_in_slot_b")
"""P(chosen better) with the chosen response in slot A, and in slot B."""

VOTE_FIELDS = ("votes_chosen_in_slot_a", "votes_chosen_in_slot_b")
"""Of a judge that writes verdicts, how many are for the chosen response, for the rejected one and invalid, with the
chosen response in slot A, and in slot B."""

RESULT_FIELDS = (
    "pair_number", "score_chosen", "score_rejected", "correct", *SLOT_FIELDS, *VOTE_FIELDS, "judge_reasoning", "run",
)  # fmt: skip
"""Fields that scoring adds to the fields of a pair, or replaces."""


@dataclass(frozen=True)
class Place:
    """Place of a pair in the structure of its benchmark."""

    group: str
    """Section, category or domain."""
    item: str = ""
    """Identifies the item, such as a prompt of RM-Bench, to which several pairs belong; else empty."""
    cell: str = ""
    """Identifies the pair within its item; else empty."""


@dataclass(frozen=True)
class PairTexts:
    """Prompt and two responses of a benchmark pair, with its fields in the benchmark's own format."""

    fields: Fields
    """Fields of the pair that are copied into the result file."""
    prompt: Prompt
    chosen: Prompt
    rejected: Prompt


@dataclass(frozen=True)
class BenchmarkPair:
    """One pair of a benchmark's data file, to be scored."""

    texts: PairTexts
    place: Place
    where: str
    """File, line and pair, for messages."""


@dataclass(frozen=True)
class Result:
    """One scored pair of a result file."""

    fields: Fields
    place: Place
    where: str

    @property
    def score_chosen(self) -> float:
        """P(chosen better) in [0, 1], mean of both orders."""
        return float(self.fields["score_chosen"])

    @property
    def score_rejected(self) -> float:
        """P(rejected better) in [0, 1]."""
        return float(self.fields["score_rejected"])

    @property
    def verdict(self) -> int:
        """1 if the chosen response won, -1 if the rejected one did, 0 for a tie."""
        return sign(self.score_chosen - self.score_rejected)

    @property
    def correct(self) -> bool:
        """Whether the chosen response won; a tie is not correct."""
        return self.verdict > 0

    @property
    def by_slot(self) -> tuple[float, float] | None:
        """P(chosen better) with the chosen response in slot A and in slot B; None if the file lacks SLOT_FIELDS."""
        first, second = (self.fields.get(name) for name in SLOT_FIELDS)
        return None if first is None or second is None else (float(first), float(second))

    @property
    def games(self) -> tuple[int, int] | None:
        """Verdicts (1, -1 or 0) with the chosen response in slot A and in slot B; None if `by_slot` is None."""
        return None if (p := self.by_slot) is None else (sign(p[0] - 0.5), sign(p[1] - 0.5))

    @property
    def written_games(self) -> tuple[int, int] | None:
        """The same by the verdicts that the judge wrote, their majority; `games` of a judge that writes none."""
        first, second = (self.fields.get(name) for name in VOTE_FIELDS)
        if first is None or second is None:
            return self.games
        return sign(first[0] - first[1]), sign(second[0] - second[1])


@dataclass(frozen=True)
class Definition:
    """Scores of a benchmark under one definition."""

    name: str
    meaning: str
    values: dict[str, float | None]
    """Shares in [0, 1] by name; None where the results do not determine one."""


class Benchmark(Protocol):
    """Interface of a benchmark, implemented by one module each."""

    @property
    def NAME(self) -> str:  # noqa: N802
        """Name on the command line."""

    @property
    def TITLE(self) -> str:  # noqa: N802
        """Name in text."""

    @property
    def CELLS(self) -> Sequence[str]:  # noqa: N802
        """`Place.cell` of every pair of an item; one empty string if an item is a single pair."""

    def texts(self, fields: Fields) -> list[PairTexts]:
        """Returns the pairs of a data row. Raises InputError that names the field."""

    def place(self, fields: Fields) -> Place:
        """Determines the place of a pair from its fields. Raises InputError that names the field."""

    def responses(self, fields: Fields) -> tuple[Any, Any] | None:
        """Returns (chosen, rejected) from the fields of a pair, or None if they are absent."""

    def published(self, results: Sequence[Result]) -> dict[str, int]:
        """Returns the number of pairs by group in the published data set to which the results belong."""

    def gram_lines(self, results: Sequence[Result]) -> list[str]:
        """Reproduces the lines that GRAM's own script prints for the results."""

    def definitions(self, results: Sequence[Result]) -> list[Definition]:
        """Computes the scores under every definition in use."""

    def leaderboard_files(self, results: Sequence[Result], model: str) -> dict[str, str]:
        """Renders the files that the benchmark's own scripts write: name -> text. `results` holds complete items."""


def read_benchmark_pairs(
    benchmark: Benchmark, path: str, on_bad: OnBad, include_reasoning: bool = False
) -> list[BenchmarkPair]:
    """Reads all pairs of a data file; warns of what a judge with `include_reasoning` will not read of their messages.

    `on_bad` receives the error of a bad row or of an incomplete item, which names it. Raises InputError when the file
    cannot be read or has no pair.
    """
    pairs: list[BenchmarkPair] = []
    for where, fields in _rows(path, on_bad):
        try:
            pairs += [_pair(benchmark, texts, where, include_reasoning) for texts in benchmark.texts(fields)]
        except InputError as error:
            on_bad(InputError(f"{where}: {error}"))
    whole, parts = split_items(benchmark, pairs)
    for part in parts:
        on_bad(
            InputError(
                f"{part[0].where}: expected each of the pairs {', '.join(benchmark.CELLS)} of item "
                f"{part[0].place.item} once, found {', '.join(sorted(pair.place.cell for pair in part))}"
            )
        )
    if not whole:
        raise InputError(f"{path}: expected at least one pair of {benchmark.NAME}, found none")
    return whole


def _pair(benchmark: Benchmark, texts: PairTexts, where: str, include_reasoning: bool) -> BenchmarkPair:
    for name in ("prompt", "chosen", "rejected"):
        to_text(getattr(texts, name), name, include_reasoning)
    place = benchmark.place(texts.fields)
    return BenchmarkPair(texts, place, f"{where}, pair {place.cell}" if place.cell else where)


def read_results(benchmark: Benchmark, path: str) -> list[Result]:
    """Reads all rows of a result file. Raises InputError that names the first invalid line."""
    results = []
    for where, fields in _rows(path, raise_bad_row):
        try:
            _check_scores(fields)
            results.append(Result(fields, benchmark.place(fields), where))
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
    if not results:
        raise InputError(f"{path}: expected at least one result of {benchmark.NAME}, found none")
    return results


Placed = TypeVar("Placed", BenchmarkPair, Result)


def split_items(benchmark: Benchmark, rows: Sequence[Placed]) -> tuple[list[Placed], list[list[Placed]]]:
    """Splits rows into (rows of complete items, incomplete items); a complete item has each of its pairs once."""
    if len(benchmark.CELLS) == 1:
        return list(rows), []
    by_item = defaultdict(list)
    for row in rows:
        by_item[row.place.item].append(row)
    is_whole = {
        item: sorted(row.place.cell for row in of_item) == sorted(benchmark.CELLS) for item, of_item in by_item.items()
    }
    whole = [row for row in rows if is_whole[row.place.item]]
    return whole, [of_item for item, of_item in by_item.items() if not is_whole[item]]


def get_text(fields: Fields, key: str) -> str:
    """Returns the string in the field `key`. Raises InputError when it is absent or not a string."""
    if not isinstance(value := get_field(fields, key), str):
        raise InputError(f"{key}: expected a string, got {type(value).__name__}")
    return value


def get_texts(fields: Fields) -> PairTexts:
    """Returns the fields `prompt`, `chosen` and `rejected`, the names of GRAM's data files."""
    return PairTexts(fields, *(get_field(fields, key) for key in ("prompt", "chosen", "rejected")))


def get_responses(fields: Fields) -> tuple[Any, Any] | None:
    """Returns the fields `chosen` and `rejected`, or None if one is absent."""
    return (fields["chosen"], fields["rejected"]) if {"chosen", "rejected"} <= fields.keys() else None


def sign(value: float) -> int:
    """Returns -1, 0 or 1, the sign of a number."""
    return (value > 0) - (value < 0)


def accuracy(results: Sequence[Result]) -> float | None:
    """Share of correct verdicts; None without results."""
    return mean(float(result.correct) for result in results)


def accuracy_lines(by_group: dict[str, float | None], overall: float) -> list[str]:
    """Lines in the format of GRAM's scripts for RewardBench and JudgeBench."""
    lines = [f"{name}: No data available." if v is None else f"{name}: {v:.4f}" for name, v in by_group.items()]
    return [*lines, f"Overall average accuracy: {overall:.4f}"]


def mean(values: Iterable[float | None]) -> float | None:
    """Arithmetic mean; None without values or when a value is None."""
    total, count = 0.0, 0
    for value in values:
        if value is None:
            return None
        total, count = total + value, count + 1
    return total / count if count else None


def _check_scores(fields: Fields) -> None:
    names = ["score_chosen", "score_rejected", *(name for name in SLOT_FIELDS if fields.get(name) is not None)]
    for name in names:
        value = get_field(fields, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise InputError(f"{name}: expected a number from 0 to 1, got {value!r}")
    for name in VOTE_FIELDS:
        votes = fields.get(name)
        are_counts = isinstance(votes, list) and len(votes) == 3 and all(type(n) is int and n >= 0 for n in votes)
        if votes is not None and not are_counts:
            raise InputError(f"{name}: expected the numbers of votes for, against and invalid, got {votes!r}")
    is_correct = fields["score_chosen"] > fields["score_rejected"]
    if get_field(fields, "correct") is not is_correct:
        raise InputError(f"correct: expected {is_correct} from the two scores, got {fields['correct']!r}")


def _rows(path: str, on_bad: OnBad) -> Iterator[tuple[str, Fields]]:
    """Yields (where, row) for every row that is a JSON object; other rows go to `on_bad`."""
    for where, row in read_rows(path, on_bad):
        if not isinstance(row, dict):
            on_bad(InputError(f"{where}: expected a JSON object, got {type(row).__name__}"))
            continue
        try:
            json.dumps(row)  # its fields are written to the result file; tables have other types too
        except (TypeError, ValueError) as error:
            on_bad(InputError(f"{where}: expected fields that are JSON: {one_line(error)}"))
        else:
            yield where, row
