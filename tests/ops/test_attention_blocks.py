"""Blocks of queries that read slots without a mask read for every query what its span and ranges say."""

import numpy as np
import pytest
import torch
from helpers.tries import BUDGETS, HEADS, SEGMENTS, Prefix, Trie, tables
from hypothesis import given, settings
from hypothesis import strategies as st

from gram_fast.extension import _C
from gram_fast.kernels.tree_attention import tree_mask
from gram_fast.scoring.tree import plan_round

pytestmark = pytest.mark.usefixtures("one_thread")


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
