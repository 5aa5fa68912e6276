"""Groups that are played together have the results of each alone; candidates keep the caller's numbers."""

from dataclasses import replace

import pytest
from helpers.comparers import LengthComparer, p_longer
from hypothesis import given, settings
from hypothesis import strategies as st

from gram_fast.ranking.packed import compare_groups, rank_groups
from gram_fast.ranking.scores import find_scores
from gram_fast.ranking.tournament import STRATEGY_NAMES, WITH_K, find_strategy
from gram_fast.text.group import Group

GROUPS = st.lists(st.lists(st.text("ab", max_size=5), min_size=2, max_size=6), max_size=6)


@pytest.mark.parametrize("name", STRATEGY_NAMES)
@settings(deadline=None, max_examples=25)
@given(GROUPS, st.sampled_from([None, 1, 2]), st.integers(0, 3))
def test_rankings_are_those_of_single_calls(name, drawn, at_once, seed):
    groups = [Group.of("prompt", responses) for responses in drawn]
    strategy, scores = find_strategy(name, 2 if name in WITH_K else None), find_scores("win_rate", name)
    rankings = rank_groups(groups, LengthComparer(at_once), strategy, scores, "ab", seed)
    for responses, group, ranking in zip(drawn, groups, rankings, strict=True):
        (alone,) = rank_groups([group], LengthComparer(), strategy, scores, "ab", seed)
        assert replace(ranking, stats=alone.stats) == alone
        assert sorted(ranking.order) == list(range(len(responses)))
        for c in ranking.comparisons:
            assert responses.index(responses[c.i]) == c.i
            assert responses.index(responses[c.j]) == c.j
    assert len({id(ranking.stats) for ranking in rankings}) <= 1


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.text("ab", max_size=5), st.text("ab", max_size=5)), max_size=6))
def test_comparisons_are_of_the_first_over_the_second(pairs):
    groups = [Group.of("prompt", pair) for pair in pairs]
    for (a, b), found in zip(pairs, compare_groups(groups, LengthComparer()), strict=True):
        assert (found.i, found.j, found.p) == (0, 1, pytest.approx(p_longer(a, b)))
