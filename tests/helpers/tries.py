"""Token trees beside the sets of prefixes that they stand for, and a buffer that runs their plans."""

from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st

from gram_fast.scoring.tree import TokenTree, TreePass, TreePlan, plan_round

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

    def clear(self, cache_limit: int = 0) -> None:
        self.tree.clear(cache_limit=cache_limit)
        self.segments, self.sequences, self.reusable = [], [], set()

    def distinct(self) -> set[Prefix]:
        return prefixes(self.head).union(*map(prefixes, self.sequences))


@dataclass
class Executor:
    """Runs plans on a buffer in which the key of a token is the tuple of all ids up to it, as is the state there."""

    slots: dict[int, Prefix] = field(default_factory=dict)
    budget: int = 0
    state_cost: int = 0
    states: dict[int, Prefix] = field(default_factory=dict)
    used: int = 0
    """Memory in use after the last plan, in slots."""

    def run(
        self, trie: Trie, leaves: np.ndarray, budget: int, keep_limit: int, more_rounds: bool, cache_limit: int = 0
    ) -> list[Prefix]:
        """Plans and runs a round, checks every pass and every answer -> the tokens computed, by prefix."""
        how = {"budget": budget, "keep_limit": keep_limit, "more_rounds": more_rounds, "cache_limit": cache_limit}
        how["state_cost"] = self.state_cost
        # Planning changes nothing: these are the tables of the same passes.
        raw_passes, _, _, _ = trie.tree.plan(leaves, **how)
        plan = plan_round(trie.tree, leaves, **how)
        if budget != self.budget:
            self.slots, self.states, self.budget = {}, {}, budget
        computed: list[Prefix] = []
        answers: dict[int, Prefix] = {}
        for tree_pass, raw in zip(plan.passes, raw_passes, strict=True):
            packed = self.run_pass(tree_pass, plan)
            check_node_table(raw["nodes"].tolist(), tree_pass.position_ids.tolist(), packed)
            self.run_states(tree_pass, plan, packed)
            computed += packed
            for row, leaf in zip(tree_pass.leaf_rows.tolist(), tree_pass.leaf_index.tolist(), strict=True):
                assert leaf not in answers
                answers[leaf] = packed[row]
        trie.tree.keep(plan.kept)
        self.used = plan.kept.used
        assert answers == {i: trie.sequences[leaf] for i, leaf in enumerate(leaves.tolist())}
        assert len(computed) == plan.num_tokens
        assert len(set(computed)) == len(computed), "a token was computed twice in one round"
        assert set(computed) <= prefixes(trie.head).union(*(prefixes(trie.sequences[leaf]) for leaf in leaves))
        return computed

    def run_states(self, tree_pass: TreePass, plan: TreePlan, packed: list[Prefix]) -> None:
        """Checks that each piece starts from the state behind the token before it, and keeps states."""
        rows = tree_pass.pieces.tolist()
        if not self.state_cost:
            assert (rows, plan.num_states) == ([], 0)
            return
        assert [row[0] for row in rows] == [0, *(row[1] for row in rows[:-1])]
        assert rows[-1][1] == len(packed)
        for number, (start, end, level, parent, read, _) in enumerate(rows):
            assert level == (rows[parent][2] + 1 if parent >= 0 else 0)
            assert parent < number
            assert parent < 0 or read < 0
            before = packed[rows[parent][1] - 1] if parent >= 0 else self.states[read] if read >= 0 else ()
            for row in range(start, end):
                assert packed[row][:-1] == before
                before = packed[row]
        # All are read before any is written.
        written = [(row[5], packed[row[1] - 1]) for row in rows if row[5] >= 0]
        assert len(dict(written)) == len(written)
        assert all(slot < plan.num_states for slot, _ in written)
        self.states.update(written)

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
        written = [slot + n for _, slot, length in tree_pass.copies.tolist() for n in range(length)]
        assert len(set(written)) == len(written)
        for start, slot, length in tree_pass.copies.tolist():
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
