"""The token tree and its plans against sets of prefixes: each computed once, kept while somebody reads it."""

import numpy as np
import pytest
from helpers.tries import BUDGETS, EVERYTHING, HEADS, SEGMENTS, Executor, Prefix, Trie, prefixes, tables
from hypothesis import given, settings
from hypothesis import strategies as st

from gram_fast.scoring.tree import TreePlan, plan_round

pytestmark = pytest.mark.usefixtures("one_thread")


@settings(deadline=None, max_examples=300)
@given(st.data(), HEADS, SEGMENTS, BUDGETS)
def test_one_round_computes_each_distinct_prefix_once(
    data: st.DataObject, head: Prefix, segments: list[Prefix], budget: int
) -> None:
    trie = Trie(head)
    assert trie.tree.num_tokens == len(head)
    trie.add_segments(segments)
    leaves = trie.add(data.draw(tables(segments)), data.draw(st.integers(0, 4)))
    assert trie.tree.num_tokens == len(trie.distinct())
    assert trie.tree.leaf_lengths(leaves).tolist() == [len(sequence) for sequence in trie.sequences]
    plan_of_one_pass = budget == EVERYTHING
    executor = Executor()
    computed = executor.run(
        trie, leaves, budget, data.draw(st.sampled_from([0, 3, EVERYTHING])), data.draw(st.booleans())
    )
    assert set(computed) == trie.distinct()
    if plan_of_one_pass:
        assert set(executor.slots.values()) >= trie.distinct()


@settings(deadline=None, max_examples=300)
@given(st.data(), HEADS)
def test_answers_hold_over_rounds_whatever_is_kept_forgotten_or_cleared(data: st.DataObject, head: Prefix) -> None:
    trie, executor = Trie(head), Executor()
    budget = data.draw(BUDGETS)
    for _ in range(data.draw(st.integers(2, 5))):
        event = data.draw(st.sampled_from(["", "", "clear", "forget", "budget"]))
        if event == "clear":
            trie.clear()
        elif event == "forget":
            trie.tree.forget_slots()
            executor.slots = {}
        elif event == "budget":
            budget = data.draw(BUDGETS)
        trie.add_segments(data.draw(SEGMENTS))
        leaves = trie.add(data.draw(tables(trie.segments)), data.draw(st.integers(0, 4)))
        again = data.draw(st.lists(st.integers(0, len(trie.sequences) - 1), max_size=4))
        leaves = np.concatenate([leaves, np.array(again, np.int32)])
        executor.run(
            trie, leaves, budget, data.draw(st.sampled_from([0, 1, 5, 12, EVERYTHING])), data.draw(st.booleans())
        )
        assert trie.tree.num_tokens == len(trie.distinct())


@settings(deadline=None, max_examples=300)
@given(st.data(), HEADS, SEGMENTS, BUDGETS)
def test_rounds_compute_only_what_is_new_while_everything_reusable_is_kept(
    data: st.DataObject, head: Prefix, segments: list[Prefix], budget: int
) -> None:
    trie, executor = Trie(head), Executor()
    trie.add_segments(segments)
    kept: set[Prefix] = set()
    reusable = data.draw(st.integers(0, 4))
    for _ in range(3):
        leaves = trie.add(data.draw(tables(segments)), reusable)
        again = data.draw(st.lists(st.integers(0, len(trie.sequences) - 1), max_size=3))
        leaves = np.concatenate([leaves, np.array(again, np.int32)])
        asked = [trie.sequences[leaf] for leaf in leaves]
        needed = prefixes(head).union(*map(prefixes, asked))
        computed = executor.run(trie, leaves, budget, EVERYTHING, more_rounds=True)
        # The last token of a leaf has to give its hidden state, kept or not.
        assert set(computed) == needed - kept | set(asked)
        kept = needed & trie.reusable | prefixes(head)


@settings(deadline=None, max_examples=80)
@given(st.data(), HEADS, SEGMENTS, st.integers(1, 9))
def test_without_a_keep_limit_slots_stay_within_a_pass_and_one_path(
    data: st.DataObject, head: Prefix, segments: list[Prefix], budget: int
) -> None:
    trie = Trie(head)
    trie.add_segments(segments)
    leaves = trie.add(data.draw(tables(segments)), data.draw(st.integers(0, 4)))
    plan = plan_round(trie.tree, leaves, budget=budget, keep_limit=0, more_rounds=True)
    assert plan.num_slots <= budget + max(map(len, trie.sequences))


def rounds_of_pairs(pieces: list[Prefix], keep_limit: int, budget: int = EVERYTHING) -> list[int]:
    """Round robin of A and B pieces (the B of piece n starts with a token of its own) -> tokens computed a round."""
    trie, executor = Trie((7, 7, 7)), Executor()
    trie.add_segments(pieces)
    trie.add_segments([(100 + n, *piece) for n, piece in enumerate(pieces)])
    count, tokens = len(pieces), []
    for shift in range(1, count):
        leaves = trie.add([(i, count + (i + shift) % count) for i in range(count)], reusable=1)
        tokens.append(len(executor.run(trie, leaves, budget, keep_limit, more_rounds=True)))
    return tokens


@pytest.mark.parametrize("budget", [5, 11, EVERYTHING])
def test_a_round_of_pairs_costs_only_its_b_pieces(budget: int) -> None:
    pieces = [(1, 2, 3), (1, 2, 4, 5), (6,), (8, 9)]
    b_tokens = sum(1 + len(piece) for piece in pieces)
    a_tokens = 3 + len(set.union(*map(prefixes, pieces)))
    assert rounds_of_pairs(pieces, EVERYTHING, budget) == [a_tokens + b_tokens, b_tokens, b_tokens]


def test_with_nothing_kept_only_the_head_is_saved() -> None:
    pieces = [(1, 2, 3), (1, 2, 4, 5), (6,), (8, 9)]
    first, *others = rounds_of_pairs(pieces, keep_limit=0)
    assert others == [first - 3] * 2


def test_tokens_computed_fall_as_more_may_be_kept() -> None:
    pieces = [(10 * n, 1, 2, 3, n) for n in range(1, 6)]
    totals = [sum(rounds_of_pairs(pieces, keep_limit, budget=13)) for keep_limit in (0, 9, 14, 19, 28)]
    assert totals == sorted(totals, reverse=True)
    assert totals[0] > totals[2] > totals[-1]


def test_several_prompts_share_the_head_alone() -> None:
    trie = Trie((1, 2))
    trie.add_segments([(3, 4), (3, 5), (6, 6), (), (9,)])  # two prompts, two responses of which one is empty, the end
    rows = [(prompt, a, b, 4) for prompt in (0, 1) for a in (2, 3) for b in (2, 3)]
    leaves = trie.add(rows, reusable=2)
    assert len(Executor().run(trie, leaves, 6, EVERYTHING, more_rounds=False)) == len(trie.distinct())


@pytest.mark.parametrize("budget", [1, 2, 3, EVERYTHING])
def test_prefixes_duplicates_and_single_tokens(budget: int) -> None:
    trie, executor = Trie(()), Executor()
    trie.add_segments([(1,), (1, 1), (1, 1, 1), (2,), ()])
    leaves = trie.add([(2, 4), (0, 4), (1, 4), (1, 4), (3, 4), (0, 1), (1, 0)])
    assert trie.tree.num_tokens == 4
    assert len(executor.run(trie, leaves, budget, 0, more_rounds=True)) == 4
    # One handle asked for twice in one round is answered twice.
    assert len(executor.run(trie, leaves[[0, 1, 1]], budget, 0, more_rounds=False)) == 3


def test_empty_segments_in_the_middle_change_nothing() -> None:
    trie = Trie((5,))
    trie.add_segments([(), (1, 2), (3,)])
    leaves = trie.add([(0, 1, 0, 2, 0), (1, 0, 0, 2, 0), (0, 0, 1, 2, 0), (1, 2, 0, 0, 0)], reusable=3)
    assert trie.tree.num_tokens == 4
    assert len(Executor().run(trie, leaves, EVERYTHING, 0, more_rounds=True)) == 4


def test_a_kept_leaf_costs_its_last_token() -> None:
    trie, executor = Trie((5, 5)), Executor()
    trie.add_segments([(1, 2, 3), (4, 4)])
    whole = trie.add([(0, 1)], reusable=2)
    inner = trie.add([(0,)], reusable=1)
    executor.run(trie, np.concatenate([whole, inner]), EVERYTHING, EVERYTHING, more_rounds=True)
    for leaf, sequence in ((inner, (5, 5, 1, 2, 3)), (inner, (5, 5, 1, 2, 3))):
        assert executor.run(trie, leaf, EVERYTHING, EVERYTHING, more_rounds=True) == [sequence]


def test_tokens_first_seen_below_a_border_stay_once_they_lie_above_one() -> None:
    trie, executor = Trie((5,)), Executor()
    trie.add_segments([(1,), (2, 3, 3), (1, 2, 3, 4), (6,), (7,)])
    leaves = trie.add([(0, 1), (2, 3)], reusable=1)  # (2, 3) is new as a part of B, then becomes a part of A
    executor.run(trie, leaves, EVERYTHING, EVERYTHING, more_rounds=True)
    computed = executor.run(trie, trie.add([(2, 4)], reusable=1), EVERYTHING, EVERYTHING, more_rounds=True)
    assert computed == [(5, 1, 2, 3, 4, 7)]


def test_neighbours_among_the_slots_of_two_trees_are_not_mixed_up() -> None:
    trie, executor = Trie(()), Executor()
    trie.add_segments([(1, 1), (2, 2), (3,), (4,)])
    for end in (2, 3):
        leaves = trie.add([(0, end), (1, end)], reusable=1)
        executor.run(trie, leaves, 16, EVERYTHING, more_rounds=True)


def test_slots_let_go_are_used_again() -> None:
    trie, executor = Trie((5,)), Executor()
    trie.add_segments([(1,) * 5, (2,) * 3, (3,) * 3])
    x, y, z = trie.add([(0,), (1,), (2,)], reusable=1)
    num_slots = []
    for leaves in [(x, y), (y, z), (x, y)] * 4:
        executor.run(trie, np.array(leaves, np.int32), 32, EVERYTHING, more_rounds=True)
        num_slots.append(max(executor.slots) + 1)
    assert max(num_slots) == 32 + 1 + 5 + 3


@pytest.mark.parametrize(("budget", "head_is_kept"), [(4, True), (3, True), (2, False)])
def test_clear_keeps_the_head_that_fitted_a_pass(budget: int, head_is_kept: bool) -> None:
    trie, executor = Trie((7, 8, 9)), Executor()
    for number in range(3):
        trie.add_segments([(1, 1), (2,)])
        leaves = trie.add([(0, 1), (1, 1)], reusable=1)
        computed = executor.run(trie, leaves, budget, EVERYTHING, more_rounds=False)
        assert len(computed) == 5 + (0 if head_is_kept and number else 3)
        trie.clear()
        assert trie.tree.num_tokens == 3
        with pytest.raises(ValueError, match="leaf 0 is unknown"):
            trie.tree.leaf_lengths([0])


@pytest.mark.parametrize("forget", ["slots", "budget"])
def test_forgotten_slots_are_computed_again(forget: str) -> None:
    trie, executor = Trie((7, 8)), Executor()
    trie.add_segments([(1, 1), (2,), (3,)])
    executor.run(trie, trie.add([(0, 1)], reusable=1), 8, EVERYTHING, more_rounds=True)
    leaves = trie.add([(0, 2)], reusable=1)
    if forget == "slots":
        trie.tree.forget_slots()
        executor.slots = {}
    computed = executor.run(trie, leaves, 8 if forget == "slots" else 9, EVERYTHING, more_rounds=True)
    assert set(computed) == prefixes((7, 8, 1, 1, 3))


def as_lists(plan: TreePlan) -> list[object]:
    """Everything that is run of a plan."""
    return [plan.num_slots, *(as_list(value) for tree_pass in plan.passes for value in vars(tree_pass).values())]


def as_list(value: object) -> object:
    if isinstance(value, tuple):
        return [as_list(part) for part in value]
    return value.tolist() if hasattr(value, "tolist") else value


@settings(deadline=None, max_examples=200)
@given(st.data(), HEADS)
def test_a_plan_that_is_not_run_changes_nothing(data: st.DataObject, head: Prefix) -> None:
    """Of two trees one is asked for other plans before each round, which nobody runs: both compute the same."""
    asked, planned, executor, beside = Trie(head), Trie(head), Executor(), Executor()
    # The other plans may have cut nodes, of which a limit between these would then keep a part.
    keep_limits = st.sampled_from([0, EVERYTHING])
    budget = data.draw(BUDGETS)
    for _ in range(data.draw(st.integers(1, 4))):
        segments, reusable = data.draw(SEGMENTS), data.draw(st.integers(0, 4))
        asked.add_segments(segments)
        planned.add_segments(segments)
        rows = data.draw(tables(asked.segments))
        asked.add(rows, reusable)
        planned.add(rows, reusable)
        some = st.lists(st.integers(0, len(asked.sequences) - 1), min_size=1, max_size=6)
        leaves = np.array(data.draw(some), np.int32)
        how = {"budget": budget, "keep_limit": data.draw(keep_limits), "more_rounds": data.draw(st.booleans())}
        for _ in range(data.draw(st.integers(1, 3))):
            others = np.array(data.draw(some), np.int32)
            plan_round(
                planned.tree,
                others,
                budget=data.draw(st.sampled_from([budget, EVERYTHING])),
                keep_limit=data.draw(st.sampled_from([0, 3, 12, EVERYTHING])),
                more_rounds=data.draw(st.booleans()),
            )
        assert beside.run(planned, leaves, **how) == executor.run(asked, leaves, **how)


@settings(deadline=None, max_examples=200)
@given(st.data(), HEADS)
def test_planning_twice_gives_the_same_passes(data: st.DataObject, head: Prefix) -> None:
    trie, executor = Trie(head), Executor()
    for _ in range(data.draw(st.integers(1, 4))):
        trie.add_segments(data.draw(SEGMENTS))
        leaves = trie.add(data.draw(tables(trie.segments)), data.draw(st.integers(0, 4)))
        again = data.draw(st.lists(st.integers(0, len(trie.sequences) - 1), max_size=4))
        leaves = np.concatenate([leaves, np.array(again, np.int32)])
        how = {
            "budget": data.draw(st.sampled_from([3, EVERYTHING])),
            "keep_limit": data.draw(st.sampled_from([0, 3, 12, EVERYTHING])),
            "more_rounds": data.draw(st.booleans()),
        }
        first, second = (as_lists(plan_round(trie.tree, leaves, **how)) for _ in range(2))
        assert first == second
        executor.run(trie, leaves, **how)


def test_a_plan_made_before_nodes_were_added_is_not_kept() -> None:
    trie = Trie((1, 2))
    trie.add_segments([(1, 1), (1, 2)])
    how = {"budget": 8, "keep_limit": EVERYTHING, "more_rounds": True}
    plan = plan_round(trie.tree, trie.add([(0,)], reusable=1), **how)
    trie.add([(1,)])
    with pytest.raises(ValueError, match="kept: expected those of a plan after which the tree did not change"):
        trie.tree.keep(plan.kept)
    # Of two plans from the same state one can be run: the other counted on slots that it wrote over.
    first, second = (plan_round(trie.tree, np.array([0], np.int32), **how) for _ in range(2))
    trie.tree.keep(second.kept)
    for other in (first, second):
        with pytest.raises(ValueError, match="kept: expected"):
            trie.tree.keep(other.kept)
    # What was forgotten stays so.
    third = plan_round(trie.tree, np.array([1], np.int32), **how)
    trie.tree.forget_slots()
    with pytest.raises(ValueError, match="kept: expected"):
        trie.tree.keep(third.kept)


@settings(deadline=None, max_examples=80)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(9, 40))
def test_passes_are_as_even_as_nodes_allow(lengths: list[int], budget: int) -> None:
    """No order of cuts between nodes has fewer passes, or as few and a shorter longest one."""
    trie = Trie(())
    trie.add_segments([(100 * n, *[1] * (length - 1)) for n, length in enumerate(lengths)])
    leaves = trie.add([(n,) for n in range(len(lengths))], reusable=0)
    plan = plan_round(trie.tree, leaves, budget=budget, keep_limit=0, more_rounds=False)
    sizes = [tree_pass.num_tokens for tree_pass in plan.passes]
    # Best longest pass by number of passes, over all cuts: longest[passes] of the nodes so far.
    ends = np.concatenate([[0], np.cumsum(lengths)])
    longest = np.full((len(lengths) + 1, len(lengths) + 1), np.inf)
    longest[0, 0] = 0
    for end in range(1, len(lengths) + 1):
        for start in range(end):
            longest[end, 1:] = np.minimum(longest[end, 1:], np.maximum(longest[start, :-1], ends[end] - ends[start]))
    fewest = int(np.flatnonzero(longest[-1] <= budget)[0])
    assert (len(sizes), max(sizes)) == (fewest, longest[-1, fewest])


def test_no_leaves_no_passes() -> None:
    trie = Trie((1,))
    assert plan_round(trie.tree, np.empty(0, np.int32), budget=4, keep_limit=0, more_rounds=True).passes == []


@pytest.mark.parametrize("row", [(0, 3), (-1, 0)])
def test_unknown_segment(row: tuple[int, ...]) -> None:
    trie = Trie((1,))
    trie.add_segments([(1,), (2,), (3,)])
    with pytest.raises(ValueError, match=rf"segment {max(row) if min(row) >= 0 else min(row)} is unknown: there are 3"):
        trie.tree.add_sequences([row], 0)


def test_a_sequence_needs_a_token_behind_the_head() -> None:
    trie = Trie((1, 2))
    trie.add_segments([()])
    with pytest.raises(ValueError, match="at least one token"):
        trie.tree.add_sequences([(0, 0)], 0)


def test_segments_come_as_a_table() -> None:
    trie = Trie((1, 2))
    trie.add_segments([(1,)])
    with pytest.raises(ValueError, match="segments"):
        trie.tree.add_sequences([0], 0)


@pytest.mark.parametrize("leaf", [-1, 1])
def test_unknown_leaf(leaf: int) -> None:
    trie = Trie((1,))
    trie.add_segments([(1,)])
    trie.add([(0,)])
    with pytest.raises(ValueError, match=f"leaf {leaf} is unknown: there are 1"):
        plan_round(trie.tree, np.array([0, leaf], np.int32), budget=4, keep_limit=0, more_rounds=False)


@pytest.mark.parametrize("budget", [0, -3])
def test_a_budget_of_nothing(budget: int) -> None:
    trie = Trie((1,))
    trie.add_segments([(1,)])
    leaves = trie.add([(0,)])
    with pytest.raises(ValueError, match=f"budget: .* got {budget}"):
        plan_round(trie.tree, leaves, budget=budget, keep_limit=0, more_rounds=False)


@settings(deadline=None, max_examples=300)
@given(st.data(), HEADS)
def test_a_cache_answers_rightly_over_calls_within_its_limit(data: st.DataObject, head: Prefix) -> None:
    """Calls with trees of their own that keep what earlier ones left, whatever is asked, kept and let go."""
    trie, executor = Trie(head), Executor()
    budget, cache_limit = data.draw(BUDGETS), data.draw(st.sampled_from([1, 4, 9, 16, EVERYTHING]))
    for _ in range(data.draw(st.integers(2, 5))):
        trie.add_segments(data.draw(SEGMENTS))
        for _ in range(data.draw(st.integers(1, 2))):
            leaves = trie.add(data.draw(tables(trie.segments)), data.draw(st.integers(0, 4)))
            executor.run(trie, leaves, budget, 0, data.draw(st.booleans()), cache_limit)
        trie.clear(data.draw(st.sampled_from([0, cache_limit, cache_limit, EVERYTHING])))


def calls_of_pairs(prompts: list[Prefix], cache_limit: int, budget: int = EVERYTHING) -> list[int]:
    """One call a prompt, of two responses in both orders -> tokens computed a call."""
    trie, executor, tokens = Trie((7, 7, 7)), Executor(), []
    for prompt in prompts:
        trie.add_segments([prompt, (1, 2), (3, 4, 5), (6,)])
        leaves = trie.add([(0, 1, 2, 3), (0, 2, 1, 3)], reusable=2)
        tokens.append(len(executor.run(trie, leaves, budget, 0, False, cache_limit)))
        trie.clear(cache_limit)
    return tokens


def test_calls_read_the_prompts_and_first_responses_of_earlier_ones() -> None:
    first, second = (10, 11, 12, 13), (20, 21, 22, 23)
    alone = 3 + 4 + (2 + 3 + 1) + (3 + 2 + 1)
    assert calls_of_pairs([first, second, first], 0) == [alone, alone - 3, alone - 3]
    # Of a call that is asked again what stands in slot B is left: 3 + 1 and 2 + 1 tokens.
    assert calls_of_pairs([first, second, first], EVERYTHING) == [alone, alone - 3, 7]
    assert calls_of_pairs([first, second, first], EVERYTHING, budget=5) == [alone, alone - 3, 7]


def test_what_was_read_longest_ago_makes_room() -> None:
    prompts = [(10, 11, 12, 13), (20, 21, 22, 23), (30, 31, 32, 33)]
    of_a_call = 4 + 2 + 3  # slots of a prompt and of what stands in slot A
    a, b, c = prompts
    new = 3 + 4 + 12 - 3
    assert calls_of_pairs([a, b, a, c, a, b], 3 + 2 * of_a_call) == [new + 3, new, 7, new, 7, new]


def test_of_a_path_the_deepest_goes_first() -> None:
    """Half a call's room keeps the prompt, which more calls share than what stands below."""
    a, b = (10, 11, 12, 13), (20, 21, 22, 23)
    new = 4 + 12
    assert calls_of_pairs([a, a], 3 + 4) == [new + 3, new - 4]
    assert calls_of_pairs([a, b, b], 3 + 4) == [new + 3, new, new - 4]


@settings(deadline=None, max_examples=200)
@given(st.data(), HEADS, SEGMENTS, BUDGETS)
def test_leaves_of_a_pass_fill_it_and_are_all_leaves_in_the_end(
    data: st.DataObject, head: Prefix, segments: list[Prefix], budget: int
) -> None:
    trie, executor = Trie(head), Executor()
    trie.add_segments(segments)
    leaves = trie.add(data.draw(tables(segments)), data.draw(st.integers(0, 4)))
    cache_limit = data.draw(st.sampled_from([1, 5, EVERYTHING]))
    pending = leaves
    while len(pending):
        chosen = trie.tree.leaves_of_pass(pending, budget=budget)
        assert 0 < len(set(chosen.tolist())) == len(chosen)
        computed = executor.run(trie, pending[chosen], budget, 0, False, cache_limit)
        # More than a pass only where one path is longer, and the leaves on it then.
        longest = max(len(trie.sequences[leaf]) for leaf in pending[chosen])
        assert len(computed) <= max(budget, longest)
        pending = np.delete(pending, chosen)


def test_tokens_are_counted_once_until_the_tree_is_cleared() -> None:
    trie, executor = Trie((7, 8)), Executor()
    for cache_limit in (0, EVERYTHING, EVERYTHING):
        trie.add_segments([(1, 1), (2,), (3, 4)])
        first, second = trie.add([(0, 1), (0, 2)], reusable=1)
        assert trie.tree.count_tokens([first]) == 5
        assert trie.tree.count_tokens([first, second]) == 2
        executor.run(trie, np.array([first, second]), 16, 0, False, cache_limit)
        assert trie.tree.count_tokens([second, first]) == 0
        trie.clear(cache_limit)
    with pytest.raises(ValueError, match="leaf 0 is unknown"):
        trie.tree.count_tokens([0])
    with pytest.raises(ValueError, match="leaf 0 is unknown"):
        trie.tree.leaves_of_pass([0], budget=4)
