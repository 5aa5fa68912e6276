"""Rewards by a comparer without a model: options that go together, duplicates and references."""

import time

import numpy as np
import pytest
from helpers.comparers import LengthComparer, p_longer
from hypothesis import given, settings
from hypothesis import strategies as st

from gram_fast.errors import InputError
from gram_fast.judge import PairwiseJudge
from gram_fast.ranking.packed import rank_groups
from gram_fast.ranking.rewards import AGAINST_REFERENCE, RewardRule, reward_groups
from gram_fast.ranking.scores import SCORE_NAMES, win_rate
from gram_fast.ranking.tournament import STRATEGIES, WITH_K
from gram_fast.text.arguments import read_groups

JUDGE = PairwiseJudge(LengthComparer())
DISTINCT = ["a", "bb", "cc", "dddd", "eeeee"]
HOW = [{"strategy": name} for name in STRATEGIES] + [{"strategy": name, "k": 2} for name in WITH_K]


@settings(max_examples=60, deadline=None)
@given(
    st.permutations(DISTINCT),
    st.lists(st.sampled_from(DISTINCT), max_size=6),
    st.sampled_from(SCORE_NAMES),
    st.sampled_from(HOW),
)
def test_a_reward_does_not_depend_on_how_often_an_answer_occurs(once, again, scores, how):
    (rewards,) = JUDGE.rewards(["p"], [once], scores=scores, **how)
    of_text = dict(zip(once, rewards, strict=True))
    (found,) = JUDGE.rewards(["p"], [[*once, *again]], scores=scores, **how)
    assert found == [of_text[text] for text in (*once, *again)]


@pytest.mark.parametrize("scores", SCORE_NAMES)
def test_four_answers_that_are_two_are_rewarded_as_two(scores):
    (four,), (two,) = (JUDGE.rewards(["p"], [texts], scores=scores) for texts in (["4", "4", "55", "55"], ["4", "55"]))
    assert four == [two[0], two[0], two[1], two[1]]
    (equal,) = JUDGE.rewards(["p"], [["4", "4", "4"]], scores=scores)
    assert equal == [0 if scores in ("bradley_terry", "margin") else 0.5] * 3


@pytest.mark.parametrize("count", [2, 5, 8, 16])
def test_points_of_knockouts_are_those_of_tournament_grpo(count):
    """A point for every match that is won in each of four knockouts, then 0 for the fewest and 1 for the most."""
    texts = ["x" * (1 + place) for place in np.random.default_rng(1).permutation(count)]
    won, rng = np.zeros(count), np.random.default_rng(9)
    for _ in range(4):
        alive = rng.permutation(count).tolist()
        while len(alive) > 1:
            pairs = list(zip(alive[0::2], alive[1::2], strict=False))
            winners = [max(pair, key=lambda candidate: len(texts[candidate])) for pair in pairs]
            won[winners] += 1
            alive = alive[2 * len(pairs) :] + winners
    (found,) = JUDGE.rewards(["p"], [texts], strategy="knockouts", k=4, scores="points", seed=9)
    assert found == pytest.approx((won - won.min()) / np.ptp(won))


def test_seconds_are_those_of_scoring_too():
    def slow(played):
        time.sleep(0.05)
        return win_rate(played)

    strategy = STRATEGIES["knockout"]
    batch = read_groups(["p"], [["a", "b"]], None, "raise", False)
    assert reward_groups(batch, LengthComparer(), RewardRule(strategy, slow, False)).stats.seconds >= 0.05
    assert rank_groups(batch.groups, LengthComparer(), strategy, slow)[0].stats.seconds >= 0.05


def test_counted_duplicates_shift_the_others_without_another_comparison():
    merged, counted = (
        JUDGE.rewards(["p"], [["4", "4", "four", "four", "fours"]], duplicates=duplicates)
        for duplicates in ("merged", "counted")
    )
    p, q, r = p_longer("4", "four"), p_longer("4", "fours"), p_longer("four", "fours")
    assert merged[0] == pytest.approx([(p + q) / 2] * 2 + [(1 - p + r) / 2] * 2 + [(2 - q - r) / 2])
    four, fours = (2 * (1 - p) + r + 0.5) / 4, (2 * (1 - q) + 2 * (1 - r)) / 4
    assert counted[0] == pytest.approx([(2 * p + q + 0.5) / 4] * 2 + [four] * 2 + [fours])
    assert sum(counted[0]) / 5 == pytest.approx(0.5, abs=1e-12)
    assert merged.stats.comparisons == counted.stats.comparisons == 6


@pytest.mark.parametrize("duplicates", ["merged", "counted"])
@pytest.mark.parametrize("scores", AGAINST_REFERENCE)
def test_against_a_reference_every_candidate_stands_alone(scores, duplicates):
    (found,) = JUDGE.rewards(
        ["p"], [["four", "a", "four", "fo"]], references=["fo"], scores=scores, duplicates=duplicates
    )
    pairs = [JUDGE.compare("p", text, "fo") for text in ("four", "a", "four")]
    against = [pair.p if scores == "probability" else pair.margin for pair in pairs]
    assert found == pytest.approx([*against, 0.5 if scores == "probability" else 0], abs=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"duplicates": "both"}, "duplicates: expected merged or counted, got 'both'"),
        ({"scores": "probability"}, "no scores 'probability': expected auto or one of win_rate, bradley_terry, margin"),
        ({"references": ["r"], "scores": "rank"}, "no scores 'rank' beside references: .* one of probability, margin"),
        ({"references": ["r"], "strategy": "sort"}, "references: expected no strategy beside them, got 'sort'"),
        ({"references": ["r"], "k": 2}, "k: expected it beside strategy top_k or opponents or knockouts alone, got 2"),
        ({"references": ["r"], "strategy": "top_k", "k": 2}, "references: expected no strategy beside them"),
    ],
)
def test_options_that_do_not_go_together_are_one_sentence(options, message):
    with pytest.raises(InputError, match=message):
        JUDGE.rewards(["p"], [["a", "bb"]], **options)
