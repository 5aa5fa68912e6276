"""Tournaments of many groups at once, with a comparer that has no model."""

import numpy as np
import pytest
from helpers.comparers import LengthComparer, LengthSession, p_longer

from gram_fast.errors import InputError
from gram_fast.ranking.play import play
from gram_fast.ranking.tournament import STRATEGIES, knockouts, opponents, top_k
from gram_fast.text.group import Group

GROUPS = [
    Group.of(f"prompt {g}", ["x" * (1 + (7 * k + g) % 11) for k in range(count)], at_least=1)
    for g, count in enumerate([5, 1, 2, 8, 3])
]
PAIRS = {
    "linear": 4 + 0 + 1 + 7 + 2,
    "knockout": 14,
    "reference": 14,
    "round_robin": 10 + 0 + 1 + 28 + 3,
    "opponents": 5 + 0 + 1 + 8 + 3,
}
WITH_K = {"top_k": top_k(2), "opponents": opponents(2), "knockouts": knockouts(3)}
ALL = STRATEGIES | WITH_K
LEADERS = dict.fromkeys(ALL, 0) | {"linear": 1, "knockout": 1, "sort": 8, "top_k": 2}


@pytest.mark.parametrize("at_once", [1, 2, None])
@pytest.mark.parametrize("strategy", PAIRS)
def test_every_strategy_sees_what_it_asked_for(strategy, at_once):
    comparer = LengthComparer(at_once)
    outcome = play(GROUPS, ALL[strategy], comparer, "both", seed=2)
    assert outcome.stats.comparisons == 2 * PAIRS[strategy]
    assert [len(found) for found in outcome.comparisons] == comparer.opened[0]["num_pairs"]
    assert comparer.opened[0]["has_one_round"] == (strategy in ("reference", "round_robin", "opponents"))
    assert not comparer.is_open


@pytest.mark.parametrize("at_once", [1, 2, None])
@pytest.mark.parametrize("strategy", ALL)
def test_leaders_are_the_best(strategy, at_once):
    outcome = play(GROUPS, ALL[strategy], LengthComparer(at_once), "both", seed=2)
    for group, leaders, comparisons in zip(GROUPS, outcome.leaders, outcome.comparisons, strict=True):
        for c in comparisons:
            assert c.p == pytest.approx(p_longer(group.texts[c.i], group.texts[c.j]))
        from_longest = np.argsort([-len(text) for text in group.texts], kind="stable").tolist()
        assert leaders == from_longest[: LEADERS[strategy]]


@pytest.mark.parametrize("strategy", ALL)
def test_answers_in_parts_change_nothing(strategy):
    outcomes = [play(GROUPS, ALL[strategy], LengthComparer(at_once), "ab", 5) for at_once in (1, None)]
    assert outcomes[0] == outcomes[1]


def test_who_meets_again_is_not_compared_again_but_counts_again():
    outcome = play(GROUPS, knockouts(3), LengthComparer(), "ab", seed=2)
    for group, met, comparisons in zip(GROUPS, outcome.met, outcome.comparisons, strict=True):
        assert len(met) == 3 * (len(group.texts) - 1)
        assert set(met) == set(comparisons)
        assert len({frozenset((c.i, c.j)) for c in comparisons}) == len(comparisons)
    assert outcome.stats.comparisons == sum(map(len, outcome.comparisons)) < sum(map(len, outcome.met))
    plain = play(GROUPS, STRATEGIES["sort"], LengthComparer(), "ab")
    assert plain.met == plain.comparisons


@pytest.mark.parametrize(("orders", "margin"), [("ab", 2.25), ("ba", 1.75), ("both", 2.0)])
def test_orders_reach_the_comparer(orders, margin):
    outcome = play([Group.of("p", ["abc", "a"])], STRATEGIES["round_robin"], LengthComparer(), orders)
    (only,) = outcome.comparisons[0]
    assert (only.margin, only.p_ab is None, only.p_ba is None) == (margin, orders == "ba", orders == "ab")


def test_nothing_to_compare_asks_for_nothing():
    for groups in ([], [Group.of("p", ["a"], at_least=1)] * 2):
        outcome = play(groups, STRATEGIES["knockout"], LengthComparer())
        assert (outcome.leaders, outcome.comparisons) == ([[0]] * len(groups), [[] for _ in groups])
        assert outcome.stats.comparisons == 0


def test_bad_arguments_are_named_before_the_comparer_is_opened():
    comparer = LengthComparer()
    with pytest.raises(InputError, match="there are no orders 'aa'"):
        play(GROUPS, STRATEGIES["linear"], comparer, "aa")
    with pytest.raises(InputError, match=r"seed: expected an integer of at least 0, got 0\.5"):
        play(GROUPS, STRATEGIES["linear"], comparer, "ab", 0.5)
    assert not comparer.opened


BROKEN = {
    "no answer": (lambda answers: {}, r"^answers: expected some of groups \[0, 2, 3, 4\], got \[\]$"),
    "a finished group": (
        lambda answers: answers | {1: answers[0]},
        r"^answers: expected some of groups \[0, 2, 3, 4\], got \[0, 1, 2, 3, 4\]$",
    ),
    "one too few": (
        lambda answers: answers | {0: answers[0][:-1]},
        r"^preferences: expected one for each of \[\(0, 1\), .*\(0, 4\)\], in order, got \[.*\(0, 3\)\]$",
    ),
    "another order": (
        lambda answers: answers | {0: answers[0][::-1]},
        r"^preferences: expected one for each of \[\(0, 1\), .*\], in order, got \[\(0, 4\), .*\]$",
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_answers_to_something_else_are_refused(broken, monkeypatch):
    change, message = BROKEN[broken]
    compare = LengthSession.compare
    monkeypatch.setattr(LengthSession, "compare", lambda self, rounds: change(compare(self, rounds)))
    comparer = LengthComparer()
    with pytest.raises(ValueError, match=message):
        play(GROUPS, STRATEGIES["reference"], comparer)
    assert not comparer.is_open
