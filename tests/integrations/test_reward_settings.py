"""Settings of reward functions are checked when these are made, before hours of training."""

import pytest

from gram_fast import InputError
from gram_fast.integrations.settings import check_settings


@pytest.mark.parametrize("has_references", [False, True])
def test_what_rewards_takes_is_right(has_references):
    check_settings({}, has_references=has_references)
    check_settings({"scores": "margin", "orders": "ab", "seed": 3}, has_references=has_references)
    check_settings({"duplicates": "counted"}, has_references=has_references)
    if not has_references:
        check_settings({"strategy": "opponents", "k": 4, "scores": "rank"}, has_references=False)


@pytest.mark.parametrize(
    ("settings", "has_references", "message"),
    [
        ({"score": "margin"}, False, "score: expected an argument of PairwiseJudge.rewards"),
        ({"on_error": "raise"}, False, "on_error: expected an argument of PairwiseJudge.rewards"),
        ({"scores": "winrate"}, False, "there are no scores 'winrate'"),
        ({"orders": "aa"}, False, "orders"),
        ({"mode": "half"}, False, "mode"),
        ({"seed": -1}, False, "seed"),
        ({"strategy": "opponents"}, False, "k: expected"),
        ({"strategy": "knockout"}, True, "expected no strategy beside them"),
        ({"scores": "rank"}, True, "no scores 'rank' beside references"),
    ],
)
def test_what_is_wrong_is_named(settings, has_references, message):
    with pytest.raises(InputError, match=message):
        check_settings(settings, has_references=has_references)
