"""A comparer that is no model docks into PairwiseJudge: alone, in parts, and several side by side."""

import itertools
import warnings

import numpy as np
import pytest
from helpers.comparers import LengthComparer, p_longer

from gram_fast.comparing.replicas import Replicas
from gram_fast.judge import PairwiseJudge
from gram_fast.results import Stats

PROMPT, RESPONSES = "Say more.", ["four", "a longer one", "x", "four", "something"]


@pytest.fixture(
    params=[
        lambda: LengthComparer(),
        lambda: LengthComparer(at_once=1),
        lambda: Replicas([LengthComparer(), LengthComparer(at_once=1)]),
    ],
    ids=["alone", "in parts", "side by side"],
)
def judge(request) -> PairwiseJudge:
    return PairwiseJudge(request.param())


def test_compare(judge):
    found = judge.compare(PROMPT, "abc", "a long one")
    assert (found.i, found.j, found.p) == (0, 1, pytest.approx(p_longer("abc", "a long one")))
    assert found.flagged == {"b": ("long",)}
    assert (type(found.stats), found.stats.comparisons) == (Stats, 2)
    many = judge.compare_many([PROMPT, "p"], [("abc", "a long one"), ("ab", "a")])
    assert [c.p for c in many] == pytest.approx([p_longer("abc", "a long one"), p_longer("ab", "a")])
    assert judge.max_length == 1000


@pytest.mark.parametrize("strategy", ["linear", "knockout", "reference", "round_robin", "sort"])
def test_rank_and_best_of_n(judge, strategy):
    ranking = judge.rank(PROMPT, RESPONSES, strategy)
    assert ranking.order == (1, 4, 0, 3, 2)
    assert ranking.scores[0] == ranking.scores[3]
    assert ranking.flagged == {"responses[1]": ("long",)}
    selection = judge.best_of_n(PROMPT, RESPONSES, strategy)
    assert (selection.index, selection.response) == (1, "a longer one")


@pytest.mark.parametrize("strategy", ["opponents", "knockouts"])
def test_strategies_whose_scores_decide(judge, strategy):
    ranking = judge.rank(PROMPT, RESPONSES, strategy, k=2)
    assert ranking.order[:2] == (1, 4)
    assert ranking.stats.comparisons == 2 * len(ranking.comparisons)


def test_top_k(judge):
    ranking = judge.rank(PROMPT, RESPONSES, "top_k", k=2)
    assert ranking.order == (1, 4, 0, 3, 2)
    assert ranking.stats.comparisons == 2 * (3 + 1)


def test_a_round_robin_of_many_warns_once_a_call_where_it_was_made(judge):
    many = ["x" * count for count in range(65)]
    with pytest.warns(UserWarning, match="all pairs, 2080 of 65 responses: .* 64 pairs, .* 455, .* 130$") as one:
        judge.rank(PROMPT, many)
    with pytest.warns(UserWarning, match="all pairs, 4160 of 2 groups of up to 65 responses") as two:
        judge.rewards([PROMPT] * 3, [many, many, ["a", "b"]])
    assert [warning.filename for warning in (*one, *two)] == [__file__] * 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        judge.rank(PROMPT, many, "knockout")
        judge.rank(PROMPT, [*many[:64], *many[:64]])
        judge.rewards([PROMPT], [many], references=["r"])


def test_rewards(judge):
    rewards = judge.rewards([PROMPT, "p", "q"], [RESPONSES, ["a", "ab"], ["a", "a"]])
    for values, responses in zip(rewards, [RESPONSES, ["a", "ab"], ["a", "a"]], strict=True):
        np.testing.assert_allclose(values, judge.rank(PROMPT, responses).scores)
    assert rewards.flagged == {"groups[0][1]": ("long",)}
    assert rewards.stats.comparisons == 2 * (6 + 1)
    against = judge.rewards([PROMPT, "p"], [RESPONSES, ["a"]], references=["four", "abc"])
    assert against[0] == pytest.approx([0.5 if text == "four" else p_longer(text, "four") for text in RESPONSES])
    assert against[1] == pytest.approx([p_longer("a", "abc")])


def test_matrix(judge):
    matrix = judge.matrix(PROMPT, RESPONSES)
    for i, j in itertools.product(range(5), repeat=2):
        assert matrix[i, j] == pytest.approx(
            p_longer(RESPONSES[i], RESPONSES[j]) if RESPONSES[i] != RESPONSES[j] else 0.5
        )
    assert matrix.stats.comparisons == 2 * 6
