"""Scores candidates by the comparisons of their tournament: win rate, margin, Bradley-Terry strength, place, points."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from gram_fast.errors import InputError, shown_value
from gram_fast.ranking.bradley_terry import fit_strengths
from gram_fast.results import Preference


@dataclass(frozen=True)
class Played:
    """What a tournament found about the C distinct candidates of a group: what a score is made of."""

    copies: NDArray[np.int64]
    """How often each candidate counts, int64 [C]: as an opponent of the others, and in means over the group."""
    comparisons: Sequence[Preference]
    """As the tournament asked for them: a pair that met twice counts twice."""
    leaders: Sequence[int] = ()
    """Candidates whose place the tournament decided, best first."""

    @property
    def candidates(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Candidates i and j of every comparison, int64 [M] each."""
        return np.array([c.i for c in self.comparisons], np.int64), np.array([c.j for c in self.comparisons], np.int64)

    def sums(
        self, value: Callable[[Preference], float], draw: float
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Sums a value over each candidate's comparisons -> (sums, number of comparisons), float64 [C] each.

        `value` is that of the comparison for i; that for j is as far on the other side of `draw`, the value of a
        candidate beside its equal. A candidate meets each copy of an opponent, and its own other copies.
        """
        i_M, j_M = self.candidates
        value_M = np.array([value(c) for c in self.comparisons], np.float64)
        games = (self.copies - 1).astype(np.float64)
        sums = games * draw
        for one_M, other_M, of_one_M in ((i_M, j_M, value_M), (j_M, i_M, 2 * draw - value_M)):
            games += np.bincount(one_M, self.copies[other_M], len(games))
            sums += np.bincount(one_M, self.copies[other_M] * of_one_M, len(games))
        return sums, games


ScoresName = Literal["auto", "win_rate", "bradley_terry", "margin", "points", "rank"]
"""Names for `find_scores`, as types."""
Scores = Callable[[Played], NDArray[np.float64]]
"""Scores of a group's candidates, float64 [C], higher is better."""


def win_rate(played: Played) -> NDArray[np.float64]:
    """Computes each candidate's mean P(it is better) over its comparisons, in [0, 1] -> float64 [C].

    The mean over the group is 0.5 wherever all have the same number of comparisons, as in a round robin and among
    `opponents` with n k even: what one gains, another loses. Without comparisons: 0.5.
    """
    return _mean(*played.sums(lambda c: c.p, 0.5), 0.5)


def margin(played: Played) -> NDArray[np.float64]:
    """Computes each candidate's mean margin over its comparisons, any number of log odds -> float64 [C].

    A margin is the label logit for the candidate less that for its opponent. It grows where the win rate is near 0 or 1
    and stands still. The mean over the group is 0 where that of win rates is 0.5. Without comparisons: 0.
    """
    return _mean(*played.sums(lambda c: c.margin, 0), 0)


def _mean(sums: NDArray[np.float64], games: NDArray[np.float64], without: float) -> NDArray[np.float64]:
    return np.where(games > 0, sums / np.maximum(games, 1), without)


def points(played: Played) -> NDArray[np.float64]:
    """Counts the comparisons that each candidate won, draws as half, and spreads the counts over [0, 1] -> float64 [C].

    The least count becomes 0 and the greatest 1; equal counts are 0.5 (Tournament-GRPO, arXiv 2605.26958, whose
    tournaments are `knockouts`). The mean over the group can be anything between.
    """
    won, _ = played.sums(lambda c: (1 + np.sign(c.p - 0.5)) / 2, 0.5)
    spread = np.ptp(won)
    return (won - won.min()) / spread if spread else np.full(len(won), 0.5)


def rank(played: Played, scores: Scores) -> NDArray[np.float64]:
    """Spreads the candidates evenly over [0, 1] by place, the best at 1 -> float64 [C].

    Places are those of a ranking: the leaders', then by `scores`. Scores that are equal to six decimals share the mean
    of their places: sums in another order leave no more of a tie. The mean over the group is 0.5. Only the order within
    the group counts, as in RULER (OpenPipe's ART), where a model scores whole groups.
    """
    values = scores(played).round(6)
    values[list(played.leaders)] = values.max() + np.arange(len(played.leaders), 0, -1)
    _, place = np.unique(values, return_inverse=True)
    at_place = np.bincount(place, played.copies)
    worse = np.cumsum(at_place) - at_place
    others = played.copies.sum() - 1
    return ((worse + (at_place - 1) / 2) / others)[place] if others else np.full(1, 0.5)


def bradley_terry(played: Played) -> NDArray[np.float64]:
    """Fits Bradley-Terry strengths s, P(i better than j) = sigmoid(s_i - s_j) -> float64 [C] in log odds, mean 0.

    Any number: one comparison sets two candidates up to 13.8 apart, a chain of n up to n times that. The comparisons
    must connect all candidates; see bradley_terry.py.
    """
    i_M, j_M = played.candidates
    p_M = np.array([c.p for c in played.comparisons], np.float64)
    weight_M = (played.copies[i_M] * played.copies[j_M]).astype(np.float64)
    s_C = fit_strengths(len(played.copies), i_M, j_M, p_M, weight_M)
    return np.asarray(s_C - played.copies @ s_C / played.copies.sum())


SCORES: dict[str, Scores] = {"win_rate": win_rate, "bradley_terry": bradley_terry, "margin": margin, "points": points}
SCORE_NAMES = (*SCORES, "rank")
"""Names for `find_scores`."""


def find_scores(name: str, strategy: str) -> Scores:
    """Finds the score function of that name. Raises InputError that lists the names.

    "auto" is the win rate for round_robin and Bradley-Terry elsewhere: win rates over different opponents cannot be
    compared. "rank" is the place by these.
    """
    usual = SCORES["win_rate" if strategy == "round_robin" else "bradley_terry"]
    if not isinstance(name, str) or name not in ("auto", *SCORE_NAMES):
        raise InputError(f"there are no scores {shown_value(name)}: expected auto or one of {', '.join(SCORE_NAMES)}")
    if name == "rank":
        return partial(rank, scores=usual)
    return usual if name == "auto" else SCORES[name]
