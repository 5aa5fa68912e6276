"""Scores candidates by the comparisons of a tournament: win rate and Bradley-Terry strength."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_expit

from gram_fast.errors import InputError, shown_value
from gram_fast.results import Preference

Scores = Callable[[int, Sequence[Preference]], NDArray[np.float64]]
"""Scores of a group's candidates: (count, comparisons) -> float64 [count], higher is better."""

# Probabilities are clipped to [this, 1 - this], +-13.8 in log odds: certainty would have infinite log odds.
_CERTAIN = 1e-6


def win_rate(count: int, comparisons: Sequence[Preference]) -> NDArray[np.float64]:
    """Computes each candidate's mean P(it is better), in [0, 1]; 0.5 without comparisons -> float64 [C]."""
    wins, games = np.zeros(count), np.zeros(count)
    for c in comparisons:
        wins[c.i] += c.p
        wins[c.j] += 1 - c.p
        games[[c.i, c.j]] += 1
    return np.where(games > 0, wins / np.maximum(games, 1), 0.5)


def bradley_terry(count: int, comparisons: Sequence[Preference]) -> NDArray[np.float64]:
    """Fits Bradley-Terry strengths s, P(i better than j) = sigmoid(s_i - s_j) -> float64 [C] in log odds, mean 0.

    Maximum likelihood (Bradley and Terry, Biometrika 39, 1952), every comparison counted as p wins and 1 - p losses.
    The problem is convex; trust-region Newton steps converge even where strengths are hundreds apart, where spectral
    and minorization methods fail. The comparisons must connect all candidates. Where they form a tree, as those of
    eliminations do, the fit is exact: differences of compared candidates are their log odds.
    """
    if count == 1:
        return np.zeros(1)
    wins_CC = np.zeros((count, count))
    for c in comparisons:
        p = min(max(c.p, _CERTAIN), 1 - _CERTAIN)
        wins_CC[c.i, c.j] += p
        wins_CC[c.j, c.i] += 1 - p
    games_CC = wins_CC + wins_CC.T

    # The likelihood depends on differences only; the mean's term makes it strictly convex with the mean at 0.
    def loss(s_C: NDArray[np.float64]) -> float:
        likelihood = (wins_CC * log_expit(s_C[:, None] - s_C)).sum()
        return float(0.5 * count * s_C.mean() ** 2 - likelihood)

    def gradient(s_C: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(s_C.mean() - (wins_CC - games_CC * expit(s_C[:, None] - s_C)).sum(axis=1))

    def hessian(s_C: NDArray[np.float64]) -> NDArray[np.float64]:
        difference_CC = s_C[:, None] - s_C
        weight_CC = games_CC * expit(difference_CC) * expit(-difference_CC)
        return np.asarray(np.diag(weight_CC.sum(axis=1)) - weight_CC + 1 / count)

    fit = minimize(
        loss,
        np.zeros(count),
        jac=gradient,
        hess=hessian,
        method="trust-exact",
        options={"gtol": 1e-11, "maxiter": 2000},
    )
    return np.asarray(fit.x)


SCORES: dict[str, Scores] = {
    "win_rate": win_rate,
    "bradley_terry": bradley_terry,
}


def find_scores(name: str, strategy: str) -> Scores:
    """Finds the score function of that name. Raises InputError that lists the names.

    "auto" is the win rate for round_robin and Bradley-Terry elsewhere: win rates over different opponents cannot be
    compared.
    """
    if isinstance(name, str) and name == "auto":
        name = "win_rate" if strategy == "round_robin" else "bradley_terry"
    if not isinstance(name, str) or name not in SCORES:
        raise InputError(f"there are no scores {shown_value(name)}: expected auto or one of {', '.join(SCORES)}")
    return SCORES[name]
