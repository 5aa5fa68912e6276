from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gram_fast.extension import _C
from gram_fast.kernels.tree_attention import tree_mask
from gram_fast.scoring.tree import TokenTree, TreePass, TreePlan, plan_round

pytestmark = pytest.mark.usefixtures("one_thread")

Prefix = tuple[int, ...]
EVERYTHING = 10**6  # as budget: one pass; as keep_limit: nothing reusable is let go


def prefixes(sequence: Prefix) -> set[Prefix]:
    return {sequence[:length] for length in range(1, len(sequence) + 1)}


@dataclass
class Trie:
    """A TokenTree beside the sets of whole prefixes that it stands for."""

    head: Prefix
    tree: TokenTree = field(init=False)
    segments: list[Prefix] = field(default_factory=list)
    sequences: list[Prefix] = field(default_factory=list)
    reusable: set[Prefix] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.tree = TokenTree(np.array(self.head, np.int32))

    def add_segments(self, segments: list[Prefix]) -> None:
        for ids in segments:
            assert self.tree.add_segment(np.array(ids, np.int32)) == len(self.segments)
            self.segments.append(ids)

    def add(self, rows: list[tuple[int, ...]], reusable: int = 0) -> np.ndarray:
        leaves = self.tree.add_sequences(np.array(rows, np.int32), reusable)
        assert leaves.tolist() == list(range(len(self.sequences), len(self.sequences) + len(rows)))
        for row in rows:
            self.sequences.append(self.spell(row))
            self.reusable |= prefixes(self.spell(row[:reusable]))
        return leaves

    def spell(self, row: tuple[int, ...]) -> Prefix:
        return sum((self.segments[s] for s in row), self.head)

    def clear(self) -> None:
        self.tree.clear()
        self.segments, self.sequences, self.reusable = [], [], set()

    def distinct(self) -> set[Prefix]:
        return prefixes(self.head).union(*map(prefixes, self.sequences))


@dataclass
class Executor:
    """Runs plans on a buffer in which the key of a token is the tuple of all ids up to it."""

    slots: dict[int, Prefix] = field(default_factory=dict)
    budget: int = 0

    def run(self, trie: Trie, leaves: np.ndarray, budget: int, keep_limit: int, more_rounds: bool) -> list[Prefix]:
        """Plans and runs a round, checks every pass and every answer -> the tokens computed, by prefix."""
        how = {"budget": budget, "keep_limit": keep_limit, "more_rounds": more_rounds}
        # Planning changes nothing: these are the tables of the same passes.
        raw_passes, _, _ = trie.tree.plan(leaves, **how)
        plan = plan_round(trie.tree, leaves, **how)
        if budget != self.budget:
            self.slots, self.budget = {}, budget
        computed: list[Prefix] = []
        answers: dict[int, Prefix] = {}
        for tree_pass, raw in zip(plan.passes, raw_passes, strict=True):
            packed = self.run_pass(tree_pass, plan)
            check_node_table(raw["nodes"].tolist(), tree_pass.position_ids.tolist(), packed)
            computed += packed
            for row, leaf in zip(tree_pass.leaf_rows.tolist(), tree_pass.leaf_index.tolist(), strict=True):
                assert leaf not in answers
                answers[leaf] = packed[row]
        trie.tree.keep(plan.kept)
        assert answers == {i: trie.sequences[leaf] for i, leaf in enumerate(leaves.tolist())}
        assert len(computed) == plan.num_tokens
        assert len(set(computed)) == len(computed), "a token was computed twice in one round"
        assert set(computed) <= prefixes(trie.head).union(*(prefixes(trie.sequences[leaf]) for leaf in leaves))
        return computed

    def run_pass(self, tree_pass: TreePass, plan: TreePlan) -> list[Prefix]:
        num_tokens = tree_pass.num_tokens
        assert 0 < num_tokens <= self.budget
        # Keys of the pass before are gone: whoever reads them, or a slot nobody wrote, gets a KeyError.
        self.slots = {slot: key for slot, key in self.slots.items() if slot >= self.budget}
        ids, positions = tree_pass.input_ids.tolist(), tree_pass.position_ids.tolist()
        spans, offsets, ranges = (table.tolist() for table in tree_pass.spans)
        done = 0
        for index, (start, end) in enumerate(spans):
            assert start == done < end
            read = ranges[offsets[index] : offsets[index + 1]]
            assert all(0 <= low < high <= plan.num_slots for low, high in read)
            keys = sorted((self.slots[slot] for low, high in read for slot in range(low, high)), key=len)
            path = keys[-1] if keys else ()
            assert keys == [path[: n + 1] for n in range(len(path))], "not each token of the path once"
            for row in range(start, end):
                assert positions[row] == len(path)
                path = (*path, ids[row])
                self.slots[row] = path
            done = end
        assert done == num_tokens
        packed = [self.slots[row] for row in range(num_tokens)]
        for start, slot, length in tree_pass.copies:
            assert 0 <= start < start + length <= num_tokens
            assert self.budget <= slot < slot + length <= plan.num_slots
            self.slots.update({slot + n: packed[start + n] for n in range(length)})
        return packed


def check_node_table(rows: list[list[int]], positions: list[int], packed: list[Prefix]) -> None:
    """Rows are in depth-first order: own tokens [start, end), the subtree's other tokens [end, subtree_end)."""
    assert [row[0] for row in rows] == [0, *(row[1] for row in rows[:-1])]
    assert rows[-1][1] == len(packed)
    for index, (start, end, subtree_end, parent, depth) in enumerate(rows):
        assert start < end <= subtree_end
        assert positions[start:end] == list(range(depth, depth + end - start))
        assert [len(prefix) for prefix in packed[start:end]] == [position + 1 for position in positions[start:end]]
        assert all(packed[end - 1][: len(prefix)] == prefix for prefix in packed[start:end])
        below = {
            row for row, prefix in enumerate(packed) if row >= end and prefix[: depth + end - start] == packed[end - 1]
        }
        assert below == set(range(end, subtree_end))
        # Between a row and its nearest ancestor in the pass may lie nodes that an earlier round kept.
        above = [
            row for row in range(index) if packed[start][: len(packed[rows[row][1] - 1])] == packed[rows[row][1] - 1]
        ]
        assert parent == max(above, default=-1)


TOKENS = st.integers(0, 2)  # few, so that segments share beginnings by chance
SEGMENTS = st.lists(st.lists(TOKENS, max_size=5).map(tuple), min_size=1, max_size=6).filter(any)
HEADS = st.lists(TOKENS, max_size=6).map(tuple)
BUDGETS = st.sampled_from([1, 2, 3, 4, 5, 6, 7, 16, EVERYTHING])


@st.composite
def tables(draw: st.DrawFn, segments: list[Prefix]) -> list[tuple[int, ...]]:
    width = draw(st.integers(1, 4))
    row = st.tuples(*[st.integers(0, len(segments) - 1)] * width)
    return draw(st.lists(row.filter(lambda r: any(segments[s] for s in r)), min_size=1, max_size=6))


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


def check_blocks(tree_tables: tuple[torch.Tensor, torch.Tensor, torch.Tensor], num_tokens: int, num_slots: int) -> None:
    """Spans with blocks read the same slots as spans with ranges, each once, and no rank reads for a query twice."""
    spans, range_offsets, ranges = tree_tables
    blocks = _C.attention_blocks(spans.numpy(), range_offsets.numpy(), ranges.numpy()).tolist()
    reads = np.zeros((num_tokens, num_slots), np.int64)
    for start, end in spans.tolist():
        reads[start:end, start:end] += np.tri(end - start, dtype=np.int64)
    queries_by_rank: dict[int, list[int]] = {}
    for rank, start, end, low, high in blocks:
        reads[start:end, low:high] += 1
        queries_by_rank.setdefault(rank, []).extend(range(start, end))
    np.testing.assert_array_equal(reads, tree_mask(spans, range_offsets, ranges, num_tokens, num_slots).numpy())
    assert all(len(set(queries)) == len(queries) for queries in queries_by_rank.values())
    assert [block[0] for block in blocks] == sorted(block[0] for block in blocks)
    assert list(queries_by_rank) == list(range(len(queries_by_rank)))


@settings(deadline=None, max_examples=80)
@given(st.data(), HEADS, SEGMENTS, BUDGETS)
def test_attention_blocks_of_plans(data: st.DataObject, head: Prefix, segments: list[Prefix], budget: int) -> None:
    trie = Trie(head)
    trie.add_segments(segments)
    for _ in range(2):
        leaves = trie.add(data.draw(tables(segments)), data.draw(st.integers(0, 4)))
        plan = plan_round(trie.tree, leaves, budget=budget, keep_limit=9, more_rounds=True)
        for p in plan.passes:
            # Slots of the budget that the pass does not fill are read by nobody: shift them out of the mask.
            gap = budget - p.num_tokens
            spans, offsets, ranges = p.spans
            ranges = ranges - gap * (ranges >= budget).long()
            check_blocks((spans, offsets, ranges), p.num_tokens, plan.num_slots - gap)
        trie.tree.keep(plan.kept)


@st.composite
def span_tables(draw: st.DrawFn) -> tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], int]:
    """Spans that read any disjoint ranges, in any order: more than a tree could make."""
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=8))
    ends = np.cumsum(lengths)
    num_tokens = int(ends[-1])
    pool = [(num_tokens + 2 * n, num_tokens + 2 * n + size) for n, size in enumerate((2, 1, 2, 1))]
    reads = [draw(st.lists(st.sampled_from(pool), unique=True, max_size=3)) for _ in lengths]
    offsets = np.cumsum([0, *map(len, reads)])
    rows = [row for read in reads for row in read]
    spans = torch.from_numpy(np.stack([ends - lengths, ends], axis=1))
    ranges = torch.tensor(rows, dtype=torch.int64).reshape(-1, 2)
    return (spans, torch.from_numpy(offsets), ranges), num_tokens


@settings(deadline=None, max_examples=300)
@given(span_tables())
def test_attention_blocks_of_any_tables(made: tuple[tuple[torch.Tensor, torch.Tensor, torch.Tensor], int]) -> None:
    tree_tables, num_tokens = made
    check_blocks(tree_tables, num_tokens, num_tokens + 8)


def test_attention_blocks_join_neighbours() -> None:
    spans = np.array([[0, 3], [3, 5], [5, 6], [6, 8]])
    ranges = np.array([[9, 12], [9, 12], [0, 2], [9, 12]])
    blocks = _C.attention_blocks(spans, np.array([0, 1, 3, 3, 4]), ranges)
    assert blocks.tolist() == [[0, 0, 5, 9, 12], [0, 6, 8, 9, 12], [1, 3, 5, 0, 2]]
