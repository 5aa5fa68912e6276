"""Calibration of a judge's confidence, and its sensitivity to response order and length, from scored pairs."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from gram_fast.evaluation.rows import Benchmark, Result, accuracy, mean
from gram_fast.text.messages import read_text

_BINS = 10
_EDGES = [(_BINS + k) / (2 * _BINS) for k in range(_BINS + 1)]  # bin edges of confidence, from 0.5 to 1


@dataclass(frozen=True)
class ReliabilityBin:
    """Verdicts whose confidence lies in one interval."""

    low: float
    high: float
    """The interval is [low, high); the last bin includes high."""
    pairs: int
    confidence: float
    """Mean confidence."""
    accuracy: float
    """Share of verdicts that are right; a tie counts half."""


@dataclass(frozen=True)
class PositionBias:
    """Position bias: dependence of verdicts on the order of the responses; None for files without both orders."""

    consistency: float | None
    """Share of pairs with the same winner, or a tie, in both orders."""
    slot_a_share: float | None
    """Share of games won by the response in slot A, a tie counting half; 0.5 without position bias."""


@dataclass(frozen=True)
class LengthBias:
    """Length bias: dependence of verdicts on length in characters; None without texts or without such pairs."""

    chosen_longer: int
    """Pairs whose chosen response is longer."""
    chosen_shorter: int
    accuracy_chosen_longer: float | None
    accuracy_chosen_shorter: float | None
    longer_wins: float | None
    """Share of pairs of unequal length whose longer response wins, a tie counting half."""
    longer_is_chosen: float | None
    """Value of `longer_wins` for a judge that is always right."""


@dataclass(frozen=True)
class Calibration:
    """Calibration and biases; the verdict is the mean over both orders, its confidence the higher of the two scores."""

    expected_calibration_error: float
    """|confidence - accuracy| of a bin, averaged over all pairs, in [0, 1] (Guo et al., arXiv 1706.04599)."""
    reliability: list[ReliabilityBin]
    """Bins that are not empty."""
    position: PositionBias
    length: LengthBias


def calibration(benchmark: Benchmark, results: Sequence[Result]) -> Calibration:
    """Computes calibration, position bias and length bias of one or more results."""
    bins = reliability(results)
    error = sum(b.pairs * abs(b.confidence - b.accuracy) for b in bins) / len(results)
    return Calibration(error, bins, position(results), length(benchmark, results))


def reliability(results: Sequence[Result]) -> list[ReliabilityBin]:
    """Bins verdicts by confidence into ten equal intervals from 0.5 to 1."""
    binned: list[list[tuple[float, float]]] = [[] for _ in range(_BINS)]
    for result in results:
        confidence = max(result.score_chosen, result.score_rejected)
        # The two scores of a tie, rounded to a short format, may both be just below 0.5.
        number = min(max(bisect_right(_EDGES, confidence) - 1, 0), _BINS - 1)
        binned[number].append((confidence, _half_for_tie(result.verdict)))
    return [
        ReliabilityBin(
            low,
            high,
            len(rows),
            confidence=sum(confidence for confidence, _ in rows) / len(rows),
            accuracy=sum(right for _, right in rows) / len(rows),
        )
        for low, high, rows in zip(_EDGES, _EDGES[1:], binned, strict=False)
        if rows
    ]


def position(results: Sequence[Result]) -> PositionBias:
    """Computes the agreement of the two orders and the share of wins of slot A."""
    games = [result.games for result in results]
    return PositionBias(
        consistency=mean(None if game is None else float(game[0] == game[1]) for game in games),
        slot_a_share=mean(
            None if game is None else (_half_for_tie(game[0]) + _half_for_tie(-game[1])) / 2 for game in games
        ),
    )


def length(benchmark: Benchmark, results: Sequence[Result]) -> LengthBias:
    """Computes accuracy by which response is longer, and how often the longer one wins."""
    longer: list[Result] = []
    shorter: list[Result] = []
    for result in results:
        if (responses := benchmark.responses(result.fields)) is not None:
            chosen, rejected = (len(read_text(response, result.where)[0]) for response in responses)
            if chosen != rejected:
                (longer if chosen > rejected else shorter).append(result)
    unequal = len(longer) + len(shorter)
    longer_wins = [_half_for_tie(result.verdict) for result in longer]
    longer_wins += [_half_for_tie(-result.verdict) for result in shorter]
    return LengthBias(
        chosen_longer=len(longer),
        chosen_shorter=len(shorter),
        accuracy_chosen_longer=accuracy(longer),
        accuracy_chosen_shorter=accuracy(shorter),
        longer_wins=mean(longer_wins),
        longer_is_chosen=len(longer) / unequal if unequal else None,
    )


def _half_for_tie(verdict: int) -> float:
    return (verdict + 1) / 2
