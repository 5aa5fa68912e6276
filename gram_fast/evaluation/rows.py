"""Rows of benchmarks, before and after scoring. Every file is JSON lines or one JSON array, and is checked whole.

A result file has GRAM's format: a row's own fields with `score_chosen` and `score_rejected`, in [0, 1], and `correct`,
which is score_chosen > score_rejected. Files written here also have the two orders apart, in SLOT_FIELDS.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from gram_fast.errors import InputError
from gram_fast.json_rows import OnBad, read_json_rows
from gram_fast.text.prompts import Prompt, to_text

Fields = dict[str, Any]

SLOT_FIELDS = ("p_chosen_in_slot_a", "p_chosen_in_slot_b")
"""P(chosen better) with the chosen response in slot A, and in slot B."""

RESULT_FIELDS = ("pair_number", "score_chosen", "score_rejected", "correct", *SLOT_FIELDS, "run")
"""What scoring adds to a pair's own fields, or puts in their place."""


@dataclass(frozen=True)
class Place:
    """Where a pair stands in its benchmark."""

    group: str
    """Section, category or domain."""
    item: str = ""
    """What several pairs belong to, where that is so."""
    cell: str = ""
    """Which pair of its item it is."""


@dataclass(frozen=True)
class PairTexts:
    """One pair to compare, in a benchmark's own words."""

    fields: Fields
    """Its fields in the result file."""
    prompt: Prompt
    chosen: Prompt
    rejected: Prompt


@dataclass(frozen=True)
class BenchmarkPair:
    """One pair of a data file."""

    texts: PairTexts
    place: Place
    where: str


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
        """1: the chosen response won, -1: the rejected one, 0: a tie."""
        return sign(self.score_chosen - self.score_rejected)

    @property
    def correct(self) -> bool:
        """Whether the chosen response won; a tie is not correct."""
        return self.verdict > 0

    @property
    def by_slot(self) -> tuple[float, float] | None:
        """The values of SLOT_FIELDS; None where the file lacks them."""
        first, second = (self.fields.get(name) for name in SLOT_FIELDS)
        return None if first is None or second is None else (float(first), float(second))

    @property
    def games(self) -> tuple[int, int] | None:
        """The verdict, as above, of the order with the chosen response in slot A, and of the other."""
        return None if (p := self.by_slot) is None else (sign(p[0] - 0.5), sign(p[1] - 0.5))


@dataclass(frozen=True)
class Definition:
    """Numbers with the definition that they follow."""

    name: str
    meaning: str
    values: dict[str, float | None]
    """Shares in [0, 1]; None where the rows do not say."""


class Benchmark(Protocol):
    """What a module must have to be a benchmark."""

    @property
    def NAME(self) -> str:  # noqa: N802
        """On the command line."""

    @property
    def CELLS(self) -> Sequence[str]:  # noqa: N802
        """The pairs that make up an item."""

    def texts(self, fields: Fields) -> list[PairTexts]:
        """The pairs of a data row. Raises InputError that names the field."""

    def place(self, fields: Fields) -> Place:
        """Where a pair's fields put it. Raises InputError that names the field."""

    def responses(self, fields: Fields) -> tuple[Any, Any] | None:
        """(chosen, rejected) of a pair's fields, where they have them."""

    def published(self, results: Sequence[Result]) -> dict[str, int]:
        """Pairs by group in the published set that the results are of."""

    def gram_lines(self, results: Sequence[Result]) -> list[str]:
        """What GRAM's own script prints for the results, line for line."""

    def definitions(self, results: Sequence[Result]) -> list[Definition]:
        """Every way in which the benchmark is counted."""

    def leaderboard_files(self, results: Sequence[Result], model: str) -> dict[str, str]:
        """Name -> text of the files that the benchmark's own repository writes; of whole items."""


def read_benchmark_pairs(benchmark: Benchmark, path: str, on_bad: OnBad) -> list[BenchmarkPair]:
    """All pairs of a data file.

    `on_bad` is given the error of a bad row, which names it; it raises, or returns to go on without that row. Raises
    InputError when the file cannot be read or has no pair.
    """
    pairs: list[BenchmarkPair] = []
    for where, fields in _rows(path, on_bad):
        try:
            pairs += [_pair(benchmark, texts, where) for texts in benchmark.texts(fields)]
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


def _pair(benchmark: Benchmark, texts: PairTexts, where: str) -> BenchmarkPair:
    for name in ("prompt", "chosen", "rejected"):
        to_text(getattr(texts, name), name)
    place = benchmark.place(texts.fields)
    return BenchmarkPair(texts, place, f"{where}, pair {place.cell}" if place.cell else where)


def read_results(benchmark: Benchmark, path: str) -> list[Result]:
    """All rows of a result file. Raises InputError that names the first line that is not as it should be."""
    results = []
    for where, fields in _rows(path, _refuse):
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
    """(rows of the items that have each of their pairs once, the other items), both in order."""
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


def get(fields: Fields, key: str) -> Any:
    """A field that must be there."""
    if key not in fields:
        raise InputError(f"expected a field {key!r}, found {', '.join(map(repr, fields)) or 'none'}")
    return fields[key]


def get_text(fields: Fields, key: str) -> str:
    """A field that must be there and be a string."""
    if not isinstance(value := get(fields, key), str):
        raise InputError(f"{key}: expected a string, got {type(value).__name__}")
    return value


def get_texts(fields: Fields) -> PairTexts:
    """The fields `prompt`, `chosen` and `rejected`, as GRAM's data files name them."""
    return PairTexts(fields, *(get(fields, key) for key in ("prompt", "chosen", "rejected")))


def get_responses(fields: Fields) -> tuple[Any, Any] | None:
    """The fields `chosen` and `rejected`."""
    return (fields["chosen"], fields["rejected"]) if {"chosen", "rejected"} <= fields.keys() else None


def sign(value: float) -> int:
    """-1, 0 or 1."""
    return (value > 0) - (value < 0)


def accuracy(results: Sequence[Result]) -> float | None:
    """Share of correct verdicts; None of nothing."""
    return mean(float(result.correct) for result in results)


def accuracy_lines(by_group: dict[str, float | None], overall: float) -> list[str]:
    """What GRAM's scripts for RewardBench and JudgeBench print."""
    lines = [f"{name}: No data available." if v is None else f"{name}: {v:.4f}" for name, v in by_group.items()]
    return [*lines, f"Overall average accuracy: {overall:.4f}"]


def mean(values: Iterable[float | None]) -> float | None:
    """The mean; None of nothing, or where a value is None."""
    total, count = 0.0, 0
    for value in values:
        if value is None:
            return None
        total, count = total + value, count + 1
    return total / count if count else None


def _check_scores(fields: Fields) -> None:
    names = ["score_chosen", "score_rejected", *(name for name in SLOT_FIELDS if fields.get(name) is not None)]
    for name in names:
        value = get(fields, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise InputError(f"{name}: expected a number from 0 to 1, got {value!r}")
    is_correct = fields["score_chosen"] > fields["score_rejected"]
    if get(fields, "correct") is not is_correct:
        raise InputError(f"correct: expected {is_correct} from the two scores, got {fields['correct']!r}")


def _rows(path: str, on_bad: OnBad) -> Iterator[tuple[str, Fields]]:
    """(name of its place, row) of every row that is an object."""
    for where, row in read_json_rows(path, on_bad):
        if isinstance(row, dict):
            yield where, row
        else:
            on_bad(InputError(f"{where}: expected a JSON object, got {type(row).__name__}"))


def _refuse(error: InputError) -> None:
    raise error
