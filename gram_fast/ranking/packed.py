"""Plays the groups of one call together, and makes the result of each: comparisons, rankings, verifications.

Groups share passes, so that no part of the cost is one group's own: `stats` of every result are those of the call.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gram_fast.comparing.comparer import Comparer
from gram_fast.comparing.orders import Orders
from gram_fast.ranking.play import play
from gram_fast.ranking.rejudging import SecondStage, order_of
from gram_fast.ranking.scores import Played, Scores
from gram_fast.ranking.tournament import EACH_ALONE, Strategy, Tournament
from gram_fast.results import Comparison, Ranking, Selection, Stats, Verification, total_stats
from gram_fast.text.group import Group


def _duel(count: int, rng: np.random.Generator) -> Tournament:
    """Compares the two responses of a pair: two distinct texts, or one text with itself."""
    yield [(0, count - 1)]
    return []


DUEL = Strategy(_duel, has_one_round=True)
"""The two candidates of a pair."""


def compare_groups(groups: Sequence[Group], comparer: Comparer, orders: Orders = "both") -> list[Comparison]:
    """Compares the two candidates of each group. Raises errors like `play`."""
    outcome = play(groups, DUEL, comparer, orders)
    return [
        Comparison(**{**vars(only), "i": 0, "j": 1}, flagged=group.flags(comparer.flags), stats=outcome.stats)
        for group, (only,) in zip(groups, outcome.comparisons, strict=True)
    ]


def rank_groups(
    groups: Sequence[Group],
    comparer: Comparer,
    strategy: Strategy,
    scores: Scores,
    orders: Orders = "both",
    seed: int = 0,
    second: SecondStage | None = None,
) -> list[Ranking]:
    """Ranks the candidates of each group: the leaders of its tournament, then by score. Raises errors like `play`.

    `second`: compares the best again and orders them.
    """
    started = time.perf_counter()
    outcome = play(groups, strategy, comparer, orders, seed)
    values_of = [
        scores(Played(np.ones(len(group.texts), np.int64), met, leaders))
        for group, met, leaders in zip(groups, outcome.met, outcome.leaders, strict=True)
    ]
    orders_of = [
        order_of(values, group, leaders)
        for values, group, leaders in zip(values_of, groups, outcome.leaders, strict=True)
    ]
    comparisons_of = [group.preferences(found) for group, found in zip(groups, outcome.comparisons, strict=True)]
    stats = outcome.stats
    if second is not None and groups:
        orders_of, more, stats_of_second = second.play(groups, orders_of, orders)
        comparisons_of = [first + again for first, again in zip(comparisons_of, more, strict=True)]
        stats = total_stats([stats, stats_of_second], 0.0)
    stats = replace(stats, seconds=time.perf_counter() - started)
    rankings = []
    for group, order, comparisons, values in zip(groups, orders_of, comparisons_of, values_of, strict=True):
        rankings.append(
            Ranking(
                best=order[0],
                order=order,
                scores=tuple(group.by_candidate(values)),
                comparisons=comparisons,
                flagged=group.flags(comparer.flags),
                stats=stats,
            )
        )
    return rankings


def no_ranking(size: int) -> Ranking:
    """Makes the ranking of that many candidates of which none was judged."""
    stats = Stats(comparisons=0, seconds=0.0)
    return Ranking(best=None, order=(), scores=(None,) * size, comparisons=(), flagged={}, stats=stats)


def select(ranking: Ranking, responses: Sequence[Any]) -> Selection:
    """The best of the responses that were ranked."""
    return Selection(
        index=ranking.best,
        response=responses[ranking.best],
        scores=ranking.scores,
        comparisons=ranking.comparisons,
        flagged=ranking.flagged,
        stats=ranking.stats,
    )


def verify_groups(groups: Sequence[Group], comparer: Comparer) -> list[Verification]:
    """Verifies the candidates of each group one by one. Raises errors like `play`."""
    outcome = play(groups, EACH_ALONE, comparer, "ab")
    p = [np.array([answer.p for answer in answers]) for answers in outcome.comparisons]
    return [
        Verification(
            tuple(group.by_candidate(of_group)),
            group.flags(comparer.flags),
            outcome.stats,
            tuple(answers[text].reasoning for text in group.text_of) if answers[0].reasoning else (),
        )
        for group, of_group, answers in zip(groups, p, outcome.comparisons, strict=True)
    ]
