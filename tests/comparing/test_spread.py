"""How the groups of a call are spread over replicas: by cost, evenly, those of one prompt together."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gram_fast.comparing.costs import costs
from gram_fast.comparing.replicas import spread, together
from gram_fast.ranking.tournament import STRATEGIES, knockouts, opponents
from gram_fast.text.group import Group

Costs = st.lists(st.integers(1, 1000), max_size=60)


@given(Costs, st.integers(1, 9))
def test_spread_keeps_the_greedy_bound(items, count):
    bin_of = spread(items, [0] * count)
    loads = np.bincount(bin_of, weights=items, minlength=count)
    assert len(bin_of) == len(items)
    assert max(loads) <= sum(items) / count + max(items, default=0)
    if len(items) <= count:
        assert max(loads) == max(items, default=0)


@given(Costs.filter(bool), st.lists(st.integers(0, 5000), min_size=2, max_size=5))
def test_spread_gives_to_the_one_with_least_to_do(items, loads):
    bin_of = spread(items, loads)
    costliest = items.index(max(items))
    assert loads[bin_of[costliest]] == min(loads)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 1000)), max_size=60), st.integers(1, 9))
def test_units_hold_every_group_once_and_leave_room_for_balance(groups, count):
    prompts, items = [prompt for prompt, _ in groups], [cost for _, cost in groups]
    units = together(prompts, items, count)
    assert sorted(g for unit in units for g in unit) == list(range(len(groups)))
    of_units = [sum(items[g] for g in unit) for unit in units]
    for unit, cost in zip(units, of_units, strict=True):
        assert len({prompts[g] for g in unit}) == 1
        assert len(unit) == 1 or cost <= sum(items) / count / 4
    loads = np.bincount(spread(of_units, [0] * count), weights=of_units, minlength=count)
    mean = sum(items) / count
    assert max(loads) <= mean + max(mean / 4, max(items, default=0))


def test_groups_of_one_prompt_stay_together_where_they_are_few():
    prompts = [f"prompt {g // 3}" for g in range(60)]
    units = together(prompts, [10] * 60, 2)
    assert [len(unit) for unit in units] == [3] * 20
    assert together(["one prompt"] * 60, [10] * 60, 2) == [[g] for g in range(60)]


def test_costs_grow_with_text_and_with_comparisons():
    small, long, many = (
        Group.of("p", responses) for responses in (["a", "b"], ["a" * 500, "b" * 500], list("abcdefgh"))
    )
    strategies = STRATEGIES | {"opponents": opponents(4), "knockouts": knockouts(4)}
    expected = {
        "round_robin": 28,
        "reference": 7,
        "knockout": 7,
        "linear": 7,
        "sort": 17,
        "opponents": 16,
        "knockouts": 16,
    }
    for strategy, pairs in expected.items():
        found = costs([small, long, many], [strategies[strategy].num_pairs(n) for n in (2, 2, 8)])
        assert found == [1 + 2 + 101, 1 + 1000 + 600, 1 + 8 + pairs * 101]
