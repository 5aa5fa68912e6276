"""Fits of strengths: exact along trees, the most likely elsewhere, whatever hangs on what."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit, log_expit, logit

from gram_fast.ranking.bradley_terry import fit_strengths


def fit(count, rows, weights=None):
    i_M, j_M = (np.array([row[place] for row in rows], np.int64) for place in (0, 1))
    p_M = np.array([row[2] for row in rows], np.float64)
    return fit_strengths(count, i_M, j_M, p_M, np.ones(len(rows)) if weights is None else np.array(weights, float))


def plain_fit(count, rows, weights):
    """Newton steps from 0 on matrices of wins of all candidates, whatever the comparisons connect."""
    wins_CC = np.zeros((count, count))
    for (i, j, p), weight in zip(rows, weights, strict=True):
        wins_CC[i, j] += weight * p
        wins_CC[j, i] += weight * (1 - p)
    games_CC = wins_CC + wins_CC.T

    def loss(s_C):
        return 0.5 * count * s_C.mean() ** 2 - (wins_CC * log_expit(s_C[:, None] - s_C)).sum()

    def gradient(s_C):
        return s_C.mean() - (wins_CC - games_CC * expit(s_C[:, None] - s_C)).sum(axis=1)

    def hessian(s_C):
        weight_CC = games_CC * expit(s_C[:, None] - s_C) * expit(s_C - s_C[:, None])
        return np.diag(weight_CC.sum(axis=1)) - weight_CC + 1 / count

    options = {"gtol": 1e-11, "maxiter": 2000}
    return minimize(loss, np.zeros(count), jac=gradient, hess=hessian, method="trust-exact", options=options).x


@st.composite
def comparisons(draw, more):
    """A random tree of comparisons and up to `more` further ones, also of pairs that met before -> count, rows."""
    count = draw(st.integers(1, 12))
    names = draw(st.permutations(range(count)))
    p = st.floats(0.01, 0.99)
    rows = [(names[draw(st.integers(0, k - 1))], names[k], draw(p)) for k in range(1, count)]
    rows = [(i, j, p) if draw(st.booleans()) else (j, i, p) for i, j, p in rows]
    for _ in range(draw(st.integers(0, more)) if count > 1 else 0):
        i, j = draw(st.permutations(range(count)))[:2]
        rows.append((i, j, draw(p)))
    return count, draw(st.permutations(rows))


@settings(max_examples=60, deadline=None)
@given(comparisons(more=0))
def test_on_a_tree_differences_are_log_odds(drawn):
    count, rows = drawn
    strengths = fit(count, rows)
    for i, j, p in rows:
        assert strengths[i] - strengths[j] == pytest.approx(logit(p), abs=1e-9)
    assert strengths.mean() == pytest.approx(0, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(comparisons(more=5), st.data())
def test_it_is_the_most_likely_whatever_hangs_on_what(drawn, data):
    count, rows = drawn
    weights = data.draw(st.lists(st.sampled_from([1.0, 2.0, 6.0]), min_size=len(rows), max_size=len(rows)))
    np.testing.assert_allclose(fit(count, rows, weights), plain_fit(count, rows, weights), atol=1e-5)


@pytest.mark.parametrize("count", [2, 7, 64, 2000])
def test_certain_comparisons_stay_finite_and_ordered(count):
    chain = fit(count, [(k, k + 1, 1.0) for k in range(count - 1)])
    np.testing.assert_allclose(np.diff(chain), logit(1e-6))


def test_a_circle_of_certain_comparisons_is_a_tie():
    circle = fit(5, [(0, 1, 1.0), (1, 2, 1.0), (2, 0, 1.0), (3, 2, 0.5), (0, 4, 0.75)])
    np.testing.assert_allclose(circle - circle[0], [0, 0, 0, 0, logit(0.25)], atol=1e-7)


def test_a_tree_needs_no_matrix():
    """Whose 20,000 candidates squared would be 3 GB, for hours."""
    rows = [(k // 2, k, 0.75) for k in range(1, 20_000)]
    strengths = fit(20_000, rows)
    assert strengths[1] - strengths[16_384] == pytest.approx(14 * logit(0.75))
