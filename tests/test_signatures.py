"""What type checkers are told of options is what the calls take."""

from typing import get_args, get_type_hints

import pytest
from helpers.comparers import LengthComparer

from gram_fast.judge import PairwiseJudge
from gram_fast.ranking.rewards import AGAINST_REFERENCE
from gram_fast.ranking.scores import SCORE_NAMES
from gram_fast.ranking.tournament import STRATEGY_NAMES

RESPONSES = ["a", "bb", "ccc"]


def names(call, option):
    def flat(hint):
        return {name for part in get_args(hint) for name in (flat(part) if get_args(part) else {part})}

    return flat(get_type_hints(getattr(PairwiseJudge, call))[option]) - {type(None)}


@pytest.mark.parametrize("call", ["rank", "best_of_n", "rewards"])
def test_names_of_strategies_and_scores(call):
    assert names(call, "strategy") == set(STRATEGY_NAMES)
    more = set(AGAINST_REFERENCE) if call == "rewards" else set()
    assert names(call, "scores") == {"auto", *SCORE_NAMES} | more


def test_all_of_them_are_taken():
    judge = PairwiseJudge(LengthComparer())
    for call, option in (
        ("rewards", "duplicates"),
        ("rewards", "on_error"),
        ("rewards", "orders"),
        ("rank", "on_error"),
    ):
        for name in names(call, option):
            arguments = (["p"], [RESPONSES]) if call == "rewards" else ("p", RESPONSES)
            assert getattr(judge, call)(*arguments, **{option: name})
    assert names("compare_many", "on_error") == names("rank", "on_error") == {"raise", "none"}
