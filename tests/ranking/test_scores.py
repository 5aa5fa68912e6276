"""Win rates and Bradley-Terry strengths."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gram_fast.errors import InputError
from gram_fast.ranking.scores import bradley_terry, find_scores, win_rate
from gram_fast.results import Preference


def games(*rows: tuple[int, int, float]) -> list[Preference]:
    return [Preference(i, j, p, 0.0, None, None) for i, j, p in rows]


def test_win_rate_is_the_mean_preference():
    np.testing.assert_allclose(win_rate(4, games((0, 1, 0.9), (0, 2, 0.7), (1, 2, 0.2))), [0.8, 0.15, 0.55, 0.5])


def test_bradley_terry_recovers_strengths():
    s = np.array([1.0, -0.5, 0.2, -0.7])
    p = 1 / (1 + np.exp(-(s[:, None] - s)))
    fit = bradley_terry(4, games(*((i, j, p[i, j]) for i in range(4) for j in range(i + 1, 4))))
    np.testing.assert_allclose(fit, s, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.001, 0.999), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_on_a_tree_of_games_differences_are_log_odds(probabilities, random):
    rows = [(random.randrange(k + 1), k + 1, p) for k, p in enumerate(probabilities)]
    fit = bradley_terry(len(rows) + 1, games(*rows))
    np.testing.assert_allclose(
        [fit[i] - fit[j] for i, j, _ in rows], [np.log(p / (1 - p)) for *_, p in rows], atol=1e-4
    )
    assert abs(fit.mean()) < 1e-6


@pytest.mark.parametrize("count", [2, 7, 64])
def test_certain_games_stay_finite_and_ordered(count):
    chain = bradley_terry(count, games(*((k, k + 1, 1.0) for k in range(count - 1))))
    assert np.isfinite(chain).all()
    assert (np.diff(chain) < 0).all()


def test_a_circle_is_a_tie():
    np.testing.assert_allclose(bradley_terry(3, games((0, 1, 0.9), (1, 2, 0.9), (2, 0, 0.9))), 0, atol=1e-8)


def test_auto_is_the_win_rate_only_where_everybody_met():
    assert find_scores("auto", "round_robin") is win_rate
    assert find_scores("auto", "knockout") is bradley_terry
    with pytest.raises(InputError, match="no scores 'elo': expected auto or one of win_rate, bradley_terry"):
        find_scores("elo", "linear")
