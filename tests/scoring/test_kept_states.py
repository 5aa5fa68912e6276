"""Plans for models with states: every node starts from its parent's state, within the limits, and little is kept."""

import numpy as np
import pytest
from helpers.tries import BUDGETS, EVERYTHING, HEADS, SEGMENTS, Executor, Prefix, Trie, prefixes, tables
from hypothesis import given, settings
from hypothesis import strategies as st

from gram_fast.scoring.tree import plan_round

pytestmark = pytest.mark.usefixtures("one_thread")

COSTS = st.sampled_from([1, 2, 5])


@settings(deadline=None, max_examples=300)
@given(st.data(), HEADS, SEGMENTS, BUDGETS, COSTS)
def test_one_round_computes_each_prefix_once_from_the_state_before_it(
    data: st.DataObject, head: Prefix, segments: list[Prefix], budget: int, cost: int
) -> None:
    trie, executor = Trie(head), Executor(state_cost=cost)
    trie.add_segments(segments)
    leaves = trie.add(data.draw(tables(segments)), data.draw(st.integers(0, 4)))
    keep_limit = data.draw(st.sampled_from([0, 3, EVERYTHING]))
    computed = executor.run(trie, leaves, budget, keep_limit, data.draw(st.booleans()))
    assert set(computed) == trie.distinct()


@settings(deadline=None, max_examples=300)
@given(st.data(), HEADS, COSTS)
def test_answers_hold_over_rounds_and_calls_within_the_limits(data: st.DataObject, head: Prefix, cost: int) -> None:
    """Whatever is kept, split, forgotten, cleared or planted anew."""
    trie, executor = Trie(head), Executor(state_cost=cost)
    budget = data.draw(BUDGETS)
    limits = st.sampled_from([0, 1, 5, 12, 30, EVERYTHING])
    cache_limit = data.draw(st.sampled_from([0, 0, 4, 9, 20, EVERYTHING]))
    most = max(cache_limit, len(head) + cost)
    for _ in range(data.draw(st.integers(2, 6))):
        event = data.draw(st.sampled_from(["", "", "clear", "forget", "budget"]))
        if event == "clear":
            trie.clear(data.draw(st.sampled_from([0, cache_limit])))
        elif event == "forget":
            trie.tree.forget_slots()
            executor.slots, executor.states = {}, {}
        elif event == "budget":
            budget = data.draw(BUDGETS)
        trie.add_segments(data.draw(SEGMENTS))
        leaves = trie.add(data.draw(tables(trie.segments)), data.draw(st.integers(0, 4)))
        again = data.draw(st.lists(st.integers(0, len(trie.sequences) - 1), max_size=4))
        leaves = np.concatenate([leaves, np.array(again, np.int32)])
        keep_limit, more_rounds = data.draw(limits), data.draw(st.booleans())
        executor.run(trie, leaves, budget, keep_limit, more_rounds, cache_limit)
        # What an earlier round may have kept under a higher limit goes when something needs its room.
        most = max(most, keep_limit if more_rounds else 0)
        assert executor.used <= most


@settings(deadline=None, max_examples=200)
@given(st.data(), HEADS, SEGMENTS, BUDGETS)
def test_without_states_plans_are_as_they_were(
    data: st.DataObject, head: Prefix, segments: list[Prefix], budget: int
) -> None:
    """With all states kept that are needed and a limit for everything, the passes are those of a model without."""
    tries = Trie(head), Trie(head)
    with_states, without = Executor(state_cost=1), Executor()
    rows = data.draw(tables(segments))
    for trie in tries:
        trie.add_segments(segments)
    leaves = [trie.add(rows, 4) for trie in tries]
    assert with_states.run(tries[0], leaves[0], budget, EVERYTHING, True) == without.run(
        tries[1], leaves[1], budget, EVERYTHING, True
    )


@pytest.mark.parametrize("budget", [5, 11, EVERYTHING])
def test_a_round_of_pairs_costs_only_its_b_pieces(budget: int) -> None:
    pieces: list[Prefix] = [(1, 2, 3), (1, 2, 4, 5), (6,), (8, 9)]
    b_tokens = sum(1 + len(piece) for piece in pieces)
    a_tokens = 3 + len(set.union(*map(prefixes, pieces)))
    trie, executor, tokens = Trie((7, 7, 7)), Executor(state_cost=3), []
    trie.add_segments(pieces)
    trie.add_segments([(100 + n, *piece) for n, piece in enumerate(pieces)])
    count = len(pieces)
    for shift in range(1, count):
        leaves = trie.add([(i, count + (i + shift) % count) for i in range(count)], reusable=1)
        tokens.append(len(executor.run(trie, leaves, budget, EVERYTHING, more_rounds=True)))
    assert tokens == [a_tokens + b_tokens, b_tokens, b_tokens]
    # Those of the head and of the four pieces; that of (1, 2), where no segment ends, is let go.
    assert executor.used == a_tokens + 3 * 5


def test_states_count_in_the_limit() -> None:
    """Of two pieces one is kept with its state where both would fit without."""
    for limit, kept in ((2 + 4 + 4 + 3 * 5, 2), (2 + 4 + 4 + 2 * 5, 1), (2 + 4 + 4 + 1 * 5, 0)):
        trie, executor = Trie((7, 7)), Executor(state_cost=5)
        trie.add_segments([(1, 1, 1, 1), (2, 2, 2, 2), (3,), (4,)])
        executor.run(trie, trie.add([(0, 2), (1, 2)], reusable=1), EVERYTHING, limit, more_rounds=True)
        computed = executor.run(trie, trie.add([(0, 3), (1, 3)], reusable=1), EVERYTHING, limit, more_rounds=False)
        assert len(computed) == 2 + 4 * (2 - kept)


def test_where_a_kept_node_was_split_it_is_computed_again() -> None:
    trie, executor = Trie((7,)), Executor(state_cost=1)
    trie.add_segments([(1, 2, 3, 4), (5,), (1, 2, 6)])
    executor.run(trie, trie.add([(0, 1)], reusable=1), EVERYTHING, EVERYTHING, more_rounds=True)
    # (1, 2) is kept, but not the state behind it; (3, 4) keeps its own, and so does the head.
    leaves = trie.add([(2, 1), (0, 2)], reusable=1)
    computed = executor.run(trie, leaves, EVERYTHING, EVERYTHING, more_rounds=True)
    behind = [(7, 1, 2, 3, 4, 1, 2, 6)[:length] for length in (6, 7, 8)]
    assert set(computed) == {(7, 1), (7, 1, 2), (7, 1, 2, 6), (7, 1, 2, 6, 5), *behind}


def test_a_kept_leaf_is_computed_again_from_its_parent() -> None:
    trie, executor = Trie((5, 5)), Executor(state_cost=1)
    trie.add_segments([(1, 2, 3), (4, 4)])
    leaves = np.concatenate([trie.add([(0, 1)], reusable=2), inner := trie.add([(0,)], reusable=1)])
    executor.run(trie, leaves, EVERYTHING, EVERYTHING, more_rounds=True)
    assert len(executor.run(trie, inner, EVERYTHING, EVERYTHING, more_rounds=True)) == 3
    chosen = trie.tree.leaves_of_pass(inner, budget=EVERYTHING)
    assert chosen.tolist() == [0]


@pytest.mark.parametrize("budget", [4, 3, 2])
def test_clear_keeps_the_head_with_its_state(budget: int) -> None:
    trie, executor = Trie((7, 8, 9)), Executor(state_cost=2)
    for number in range(3):
        trie.add_segments([(1, 1), (2,)])
        leaves = trie.add([(0, 1), (1, 1)], reusable=1)
        computed = executor.run(trie, leaves, budget, EVERYTHING, more_rounds=False)
        assert len(computed) == 5 + (0 if budget >= 3 and number else 3)
        trie.clear()


def test_calls_start_from_what_earlier_ones_left() -> None:
    trie, executor, tokens = Trie(()), Executor(state_cost=2), []
    first, second = (10, 11, 12, 13), (20, 21, 22, 23)
    for prompt in (first, second, first, first):
        trie.add_segments([(7, 7, 7), prompt, (1, 2), (3, 4, 5), (6,)])
        leaves = trie.add([(0, 1, 2, 3, 4), (0, 1, 3, 2, 4)], reusable=3)
        tokens.append(len(executor.run(trie, leaves, EVERYTHING, 0, False, EVERYTHING)))
        trie.clear(EVERYTHING)
    alone = 3 + 4 + (2 + 3 + 1) + (3 + 2 + 1)
    assert tokens == [alone, alone - 3, 7, 7]


@settings(deadline=None, max_examples=200)
@given(st.data(), HEADS, SEGMENTS, BUDGETS, COSTS)
def test_leaves_of_a_pass_fill_it_and_are_all_leaves_in_the_end(
    data: st.DataObject, head: Prefix, segments: list[Prefix], budget: int, cost: int
) -> None:
    trie, executor = Trie(head), Executor(state_cost=cost)
    trie.add_segments(segments)
    leaves = trie.add(data.draw(tables(segments)), data.draw(st.integers(0, 4)))
    cache_limit = data.draw(st.sampled_from([1, 5, EVERYTHING]))
    pending = leaves
    while len(pending):
        chosen = trie.tree.leaves_of_pass(pending, budget=budget)
        assert 0 < len(set(chosen.tolist())) == len(chosen)
        computed = executor.run(trie, pending[chosen], budget, 0, False, cache_limit)
        longest = max(len(trie.sequences[leaf]) for leaf in pending[chosen])
        assert len(computed) <= max(budget, longest)
        pending = np.delete(pending, chosen)


@settings(deadline=None, max_examples=200)
@given(st.data(), HEADS, COSTS)
def test_a_plan_that_is_not_run_changes_nothing(data: st.DataObject, head: Prefix, cost: int) -> None:
    asked, planned = Trie(head), Trie(head)
    executor, beside = Executor(state_cost=cost), Executor(state_cost=cost)
    budget = data.draw(BUDGETS)
    for _ in range(data.draw(st.integers(1, 4))):
        segments, reusable = data.draw(SEGMENTS), data.draw(st.integers(0, 4))
        asked.add_segments(segments)
        planned.add_segments(segments)
        rows = data.draw(tables(asked.segments))
        leaves = asked.add(rows, reusable)
        planned.add(rows, reusable)
        others = data.draw(st.lists(st.integers(0, len(asked.sequences) - 1), min_size=1, max_size=6))
        plan_round(
            planned.tree, np.array(others, np.int32), budget=budget, keep_limit=3, more_rounds=True, state_cost=cost
        )
        how = {"budget": budget, "keep_limit": EVERYTHING, "more_rounds": data.draw(st.booleans())}
        # A split of the other plan may have parted what is computed in one piece.
        assert set(beside.run(planned, leaves, **how)) == set(executor.run(asked, leaves, **how))


def test_a_state_cost_below_nothing() -> None:
    trie = Trie((1,))
    trie.add_segments([(1,)])
    with pytest.raises(ValueError, match="state_cost: expected at least 0, got -1"):
        plan_round(trie.tree, trie.add([(0,)]), budget=4, keep_limit=0, more_rounds=False, state_cost=-1)
