"""Scores of comparisons: their values, ranges, means over the group, and what duplicates are to them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gram_fast.errors import InputError
from gram_fast.ranking.scores import SCORE_NAMES, Played, bradley_terry, find_scores, margin, points, rank, win_rate
from gram_fast.results import Preference


def games(*rows: tuple[int, int, float]) -> list[Preference]:
    """Comparisons (i, j, p) with margins that are their log odds."""
    return [Preference(i, j, p, float(np.log(p / (1 - p))) if 0 < p < 1 else 0.0, None, None) for i, j, p in rows]


def played(count: int, *rows: tuple[int, int, float], copies=None, leaders=()) -> Played:
    return Played(np.ones(count, np.int64) if copies is None else np.array(copies), games(*rows), leaders)


FOUR = [(0, 1, 0.9), (0, 2, 0.7), (1, 2, 0.2)]


def test_win_rate_is_the_mean_preference():
    np.testing.assert_allclose(win_rate(played(4, *FOUR)), [0.8, 0.15, 0.55, 0.5])


def test_margin_is_the_mean_of_the_margins():
    a, b, c = (m.margin for m in games(*FOUR))
    np.testing.assert_allclose(margin(played(4, *FOUR)), [(a + b) / 2, (c - a) / 2, (-b - c) / 2, 0])


def test_points_count_wins_and_are_spread_over_the_group():
    np.testing.assert_allclose(points(played(4, *FOUR)), [1, 0, 0.5, 0])
    np.testing.assert_allclose(points(played(3, (0, 1, 0.5), (0, 2, 0.9), (0, 2, 0.9))), [1, 0.2, 0])
    np.testing.assert_allclose(points(played(3, (0, 1, 0.9), (1, 2, 0.9), (2, 0, 0.9))), 0.5)
    np.testing.assert_allclose(points(played(1)), 0.5)


def test_rank_is_the_place_and_ties_share_theirs():
    np.testing.assert_allclose(rank(played(4, *FOUR), win_rate), [1, 0, 2 / 3, 1 / 3])
    np.testing.assert_allclose(rank(played(3, (0, 1, 0.9), (1, 2, 0.9), (2, 0, 0.9)), win_rate), 0.5)
    np.testing.assert_allclose(
        rank(played(4, (0, 1, 0.5), (0, 2, 0.9), (1, 2, 0.9)), win_rate), [2.5 / 3, 2.5 / 3, 0, 1 / 3]
    )
    np.testing.assert_allclose(rank(played(4, *FOUR, leaders=[3, 1]), win_rate), [1 / 3, 2 / 3, 0, 1])
    np.testing.assert_allclose(rank(played(1), win_rate), 0.5)


def test_bradley_terry_recovers_strengths():
    s = np.array([1.0, -0.5, 0.2, -0.7])
    p = 1 / (1 + np.exp(-(s[:, None] - s)))
    fit = bradley_terry(played(4, *((i, j, p[i, j]) for i in range(4) for j in range(i + 1, 4))))
    np.testing.assert_allclose(fit, s, atol=1e-6)


def test_auto_is_the_win_rate_only_where_everybody_met():
    assert find_scores("auto", "round_robin") is win_rate
    assert find_scores("auto", "knockout") is find_scores("auto", "opponents") is bradley_terry
    with pytest.raises(
        InputError, match="no scores 'elo': expected auto or one of win_rate, bradley_terry, margin, points, rank"
    ):
        find_scores("elo", "linear")


def round_robins(most: int):
    """Probabilities of a round robin as a matrix, with how often each candidate stands in the group."""
    return st.integers(1, most).flatmap(
        lambda count: st.tuples(
            st.lists(st.integers(1, 3), min_size=count, max_size=count),
            st.lists(st.sampled_from([0.01, 0.2, 0.5, 0.6, 0.99]), min_size=count**2, max_size=count**2),
        )
    )


def of_round_robin(copies, p, counted: bool) -> Played:
    count = len(copies)
    rows = [(i, j, p[i * count + j]) for i in range(count) for j in range(i + 1, count)]
    return played(count, *rows, copies=copies if counted else None)


MEANS = {"win_rate": 0.5, "bradley_terry": 0, "margin": 0, "rank": 0.5}


@settings(max_examples=40, deadline=None)
@given(round_robins(6), st.booleans())
def test_the_mean_over_the_group_is_known(group, counted):
    """Over the distinct candidates where equal ones are merged, else over all."""
    copies, p = group
    for name, mean in MEANS.items():
        values = find_scores(name, "round_robin")(of_round_robin(copies, p, counted))
        assert np.average(values, weights=copies if counted else None) == pytest.approx(mean, abs=1e-9)
    values = points(of_round_robin(copies, p, counted))
    assert (values.min(), values.max()) in ((0, 1), (0.5, 0.5))


@settings(max_examples=40, deadline=None)
@given(round_robins(4))
def test_counted_copies_are_candidates_of_their_own(group):
    """As if every copy had been compared with every other candidate, and drawn with its equals."""
    copies, p = group
    text_of = np.repeat(np.arange(len(copies)), copies)
    rows = []
    for x, i in enumerate(text_of):
        for y, j in enumerate(text_of[x + 1 :], x + 1):
            rows.append((x, y, 0.5 if i == j else p[i * len(copies) + j]))
    for name in SCORE_NAMES:
        scores = find_scores(name, "round_robin")
        ours = scores(of_round_robin(copies, p, counted=True))[text_of]
        np.testing.assert_allclose(ours, scores(played(len(text_of), *rows)), atol=1e-6)
