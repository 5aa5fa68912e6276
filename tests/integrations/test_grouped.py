"""Rows become groups by their keys, and get the rewards of their own group back."""

import random

import numpy as np
import pytest
from helpers.comparers import LengthComparer
from hypothesis import given
from hypothesis import strategies as st

from gram_fast import InputError, PairwiseJudge
from gram_fast.integrations.grouped import rewards_of_rows
from gram_fast.integrations.metrics import metrics

JUDGE = PairwiseJudge(LengthComparer())
RESPONSES = st.lists(st.one_of(st.text("ab", max_size=5), st.none()), min_size=1, max_size=5)


@given(st.lists(st.tuples(st.sampled_from(["p", "q"]), RESPONSES), min_size=1, max_size=5), st.randoms())
def test_rows_in_any_order_get_what_their_groups_get(groups, rng: random.Random):
    rows = [(g, prompt, response) for g, (prompt, responses) in enumerate(groups) for response in responses]
    rng.shuffle(rows)
    found = rewards_of_rows(JUDGE, *map(list, zip(*rows, strict=True)))
    expected = {}
    for g, (prompt, responses) in enumerate(groups):
        rewards = JUDGE.rewards([prompt], [responses], on_error="none")[0]
        expected |= {(g, response): reward for response, reward in zip(responses, rewards, strict=True)}
    # Candidates in another order are summed in another order.
    assert found.values == pytest.approx([expected[g, response] for g, _, response in rows], abs=1e-12)
    assert [reason is None for reason in found.reasons] == [value is not None for value in found.values]


def test_one_prompt_may_stand_twice():
    found = rewards_of_rows(JUDGE, [0, 0, 1, 1], ["p"] * 4, ["a", "aa", "aaa", "aaaaaaaaa"])
    assert len(found.rewards) == 2
    assert found.values[1] > 0.5 > found.values[2]


@pytest.mark.parametrize(
    ("prompts", "responses", "references", "reason"),
    [
        ([None, None], ["a", "b"], None, "prompt: expected a string or"),
        (["p", "p"], ["a", "b"], [None, None], "reference: expected a string or"),
        (["p", "p"], ["a", None], None, "group: expected at least 2 responses that can be judged, found 1"),
    ],
)
def test_a_row_without_a_reward_has_a_reason(prompts, responses, references, reason):
    found = rewards_of_rows(JUDGE, "kk", prompts, responses, references=references)
    assert found.values == [None, None]
    assert found.reasons[0].startswith(reason)


def test_a_reference_is_that_of_the_group():
    found = rewards_of_rows(JUDGE, "kl", ["p", "p"], ["aaa", "aaa"], references=["a", "aaaaaa"])
    assert found.values[0] > 0.5 > found.values[1]


def test_messages_are_equal_as_they_are_read():
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    values = [messages, tuple(messages), np.array(messages)]
    found = rewards_of_rows(JUDGE, "kkk", values, ["a", "aa", "aaa"], references=values[::-1])
    assert found.reasons == [None] * 3
    with pytest.raises(InputError, match="references: expected equal ones under one key, rows 0 and 1 of"):
        rewards_of_rows(JUDGE, "kk", values[:2], ["a", "b"], references=[values[2], values[2][:1]])


def test_what_cannot_be_one_group_is_refused():
    with pytest.raises(InputError, match="prompts: expected equal ones under one key, rows 0 and 2 of key 'k' differ"):
        rewards_of_rows(JUDGE, "klk", ["p", "q", "q"], ["a", "b", "c"])
    with pytest.raises(InputError, match="responses: expected one for each of 2 rows, got 1"):
        rewards_of_rows(JUDGE, "kk", ["p", "p"], ["a"])


def test_metrics_are_counted_by_hand():
    # 0 and 1 are one character apart, 0 and 2 equal in length: those orders disagree, and p is one half.
    rewards = JUDGE.rewards(["p"], [["ab", "abc", "ba", None]], on_error="none")
    found = metrics(rewards)
    assert found == {
        "unjudged": 0.25,
        "comparisons": 6,
        "seconds": rewards.stats.seconds,
        "ties": 1 / 3,
        "position_consistency": 2 / 3,
    }


def test_metrics_of_one_order_and_of_nothing_leave_out_what_is_not_known():
    assert "position_consistency" not in metrics(JUDGE.rewards(["p"], [["a", "b"]], orders="ab"))
    assert metrics(JUDGE.rewards([], [])).keys() == {"unjudged", "comparisons", "seconds"}
