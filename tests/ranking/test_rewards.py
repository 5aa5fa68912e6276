"""Rewards by a comparer without a model: options that go together, duplicates and references."""

import pytest
from helpers.comparers import LengthComparer, p_longer
from hypothesis import given, settings
from hypothesis import strategies as st

from gram_fast.errors import InputError
from gram_fast.judge import PairwiseJudge
from gram_fast.ranking.rewards import AGAINST_REFERENCE
from gram_fast.ranking.scores import SCORE_NAMES

JUDGE = PairwiseJudge(LengthComparer())
TEXTS = st.lists(st.sampled_from(["a", "bb", "cc", "dddd", "eeeee"]), min_size=2, max_size=6)


@settings(max_examples=30, deadline=None)
@given(TEXTS, st.sampled_from(SCORE_NAMES), st.sampled_from(["round_robin", "knockout", "sort"]))
def test_a_reward_does_not_depend_on_how_often_an_answer_occurs(texts, scores, strategy):
    distinct = list(dict.fromkeys(texts))
    many, *once = JUDGE.rewards(["p"] * 2, [texts, distinct * 2], scores=scores, strategy=strategy)
    for found in (many, once[0]):
        of_text = dict(zip(texts if found is many else distinct * 2, found, strict=True))
        assert found == [of_text[text] for text in (texts if found is many else distinct * 2)]
    assert dict(zip(texts, many, strict=True)) == dict(zip(distinct, once[0], strict=False))


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
