"""What the judge returns. Candidates are numbered as they were given; every result carries `stats` and `flagged`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Flagged = Mapping[str, tuple[str, ...]]
"""By place ("responses[2]", "a", "groups[0][1]"): lines of the judge's template, or texts of special tokens, that the
text contains. It was scored as it is; such text may try to pass for part of the prompt."""


@dataclass(frozen=True, kw_only=True)
class Stats:
    """What a call cost, whatever compares."""

    comparisons: int
    """Presentations of a pair to the judge: pairs times orders."""
    seconds: float
    """Wall time of the call."""


@dataclass(frozen=True, kw_only=True)
class ForwardStats(Stats):
    """What a call cost a judge that reads label logits from forwards over shared prefixes."""

    tokens_unshared: int
    """Tokens of one forward for every comparison: what a judge without sharing would compute."""
    tokens_tree: int
    """Distinct prefixes among them: tokens of the radix tree."""
    tokens_computed: int
    """Tokens run through the model. Less than tokens_tree by what was kept from earlier calls (the instruction), more
    by what had to be let go between rounds and computed again."""
    passes: int
    """Forwards that were run."""


AnyStats = TypeVar("AnyStats", bound=Stats)


def total_stats(parts: Sequence[AnyStats], seconds: float) -> AnyStats:
    """The sums of the counts of parts, one or more, that ran at the same time and took `seconds` together."""
    names = [field.name for field in fields(parts[0]) if field.name != "seconds"]
    return replace(parts[0], **{name: sum(getattr(part, name) for part in parts) for name in names}, seconds=seconds)


@dataclass(frozen=True)
class Preference:
    """Two responses compared: i against j."""

    i: int
    j: int
    p: float
    """P(i better than j) in [0, 1], mean over the orders asked for."""
    margin: float
    """Label logit for i minus label logit for j, mean over the orders asked for."""
    p_ab: float | None
    """P(i better) with i shown first, None when that order was not asked for."""
    p_ba: float | None
    """P(i better) with i shown second, None when that order was not asked for."""


@dataclass(frozen=True)
class Comparison(Preference):
    """Result of `PairwiseJudge.compare`: response a is i = 0, response b is j = 1."""

    flagged: Flagged
    stats: Stats


@dataclass(frozen=True)
class Ranking:
    """Result of `PairwiseJudge.rank`."""

    best: int
    """The winner: order[0]."""
    order: tuple[int, ...]
    """Candidates from best to worst."""
    scores: tuple[float, ...]
    """By candidate: win rate in [0, 1], or Bradley-Terry strength (log odds, mean 0). Higher is better."""
    comparisons: tuple[Preference, ...]
    """Every comparison made, in order; equal responses are compared once and named by the first of them."""
    flagged: Flagged
    stats: Stats


@dataclass(frozen=True)
class Selection:
    """Result of `PairwiseJudge.best_of_n`."""

    index: int
    """Number of the chosen response."""
    response: Any
    """The chosen response, as it was given."""
    scores: tuple[float, ...]
    """As in Ranking."""
    comparisons: tuple[Preference, ...]
    flagged: Flagged
    stats: Stats


class Rewards(list[list[float]]):
    """Result of `PairwiseJudge.rewards`: one list a prompt, one float a candidate; higher is better."""

    def __init__(self, values: Iterable[list[float]], flagged: Flagged, stats: Stats) -> None:
        super().__init__(values)
        self.flagged = flagged
        self.stats = stats


class PreferenceMatrix(np.ndarray[Any, np.dtype[np.float64]]):
    """Result of `PairwiseJudge.matrix`: float64 [C, C], entry (i, j) = P(i better than j), 0.5 on the diagonal."""

    flagged: Flagged
    stats: Stats | None
    """None in an array made from another than by slicing or arithmetic, such as an unpickled one."""

    def __array_finalize__(self, source: Any) -> None:
        self.flagged, self.stats = getattr(source, "flagged", {}), getattr(source, "stats", None)

    @classmethod
    def wrap(cls, values: NDArray[np.float64], flagged: Flagged, stats: Stats) -> "PreferenceMatrix":
        """The matrix with what it carries."""
        matrix = values.view(cls)
        matrix.flagged, matrix.stats = flagged, stats
        return matrix
