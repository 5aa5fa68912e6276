"""Where the two modes of a judge differ on groups of candidates, and what judging the best again changes."""

from collections.abc import Sequence
from statistics import mean

import numpy as np
from scipy.stats import kendalltau

from gram_fast import PairwiseJudge

REJUDGED = 4
"""Candidates that are judged again in mode full."""


def orders(judge: PairwiseJudge, prompt: str, candidates: Sequence[str]) -> list[tuple[int, ...]]:
    """Ranks candidates -> their orders in mode full, in mode factored, and there with the best judged again in full."""
    full, factored = (judge.rank(prompt, candidates, mode=mode).order for mode in ("full", "factored"))
    return [full, factored, judge.rank(prompt, candidates, mode="factored", rejudge=REJUDGED).order]


def agreement(groups: Sequence[Sequence[Sequence[int]]]) -> dict[str, float]:
    """Of the `orders` of each group, how often mode full has the same first as the others, and Kendall's tau."""
    taus = [float(kendalltau(np.argsort(full), np.argsort(factored)).statistic) for full, factored, _ in groups]
    return {
        "same_first": mean(float(full[0] == factored[0]) for full, factored, _ in groups),
        "same_first_rejudged": mean(float(full[0] == again[0]) for full, _, again in groups),
        "tau": mean(taus),
    }
