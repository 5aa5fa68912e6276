"""The items that leaf attention is cut into: each key is read once for sixteen leaves, the longest item first."""

from itertools import pairwise

import numpy as np
import pytest
from helpers.attention import Rounds, rounds
from helpers.leaves import (
    CHUNK_KEYS,
    ITEM_LEAVES,
    SHAPE_SLOTS,
    SHAPES,
    LeafTables,
    leaf_tables_of,
    make_leaf_tables,
    under_a_root,
)
from helpers.ops import CPU
from hypothesis import HealthCheck, given, settings

from gram_fast import ops
from gram_fast.kernels.leaf_attention import leaf_mask

pytestmark = pytest.mark.usefixtures("one_thread")


def read_plan(tables: LeafTables, window: ops.Window | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Items [X, 4], the leaves' offsets [L + 1], and the entries [P, 4] that some item counts as its own."""
    *spans, leaf_rows_L = tables
    items = ops.LeafTables.of(ops.Spans(*spans), leaf_rows_L, "extension", CPU, window=window).items
    assert items is not None
    table, num_leaves = items.numpy(), len(leaf_rows_L)
    flat, at = table.ravel(), 4 * len(table)
    items, offsets = flat[:at].reshape(-1, 4), flat[at : at + num_leaves + 1]
    entries = flat[at + (num_leaves + 4) // 4 * 4 :]
    return items, offsets, entries[: 4 * items[:, 3].max()].reshape(-1, 4)


def check_plan(tables: LeafTables, num_slots: int, window: ops.Window | None = None) -> None:
    items, offsets, entries = read_plan(tables, window)
    assert (items[:, 1] - items[:, 0] <= CHUNK_KEYS).all()
    assert (items[:, 3] - items[:, 2] <= ITEM_LEAVES).all()
    assert items[0, 2] == 0
    assert (items[1:, 2] == items[:-1, 3]).all(), "every entry is in one item"
    costs = (items[:, 1] - items[:, 0]) * (items[:, 3] - items[:, 2])
    assert (np.diff(costs) <= 0).all(), "longest first"
    num_reads = np.zeros((len(tables[3]), num_slots), dtype=int)
    for start, end, first, last in items:
        mine = entries[first:last]
        assert (mine[:, 1].min(), mine[:, 2].max()) == (start, end), "no key is fetched for nobody"
        assert (mine[:, 1] < mine[:, 2]).all()
        for leaf, low, high, partial in mine:
            num_reads[leaf, low:high] += 1
            assert offsets[leaf] <= partial < offsets[leaf + 1]
    size, is_chunked = window or (None, False)
    assert np.array_equal(num_reads, leaf_mask(*tables, num_slots, size, is_chunked).numpy().astype(int))
    assert sorted(entries[:, 3]) == list(range(len(entries)))
    assert (offsets[0], offsets[-1]) == (0, len(entries))


@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rounds())
def test_plans_of_random_trees(made: Rounds) -> None:
    for tables, num_slots in leaf_tables_of(made):
        check_plan(tables, num_slots)


@pytest.mark.parametrize("shape", SHAPES)
def test_plans(shape: str) -> None:
    check_plan(SHAPES[shape], SHAPE_SLOTS)


@pytest.mark.parametrize("size", [1, 2, 7, 100, 256, 523, 5000])
@pytest.mark.parametrize("is_chunked", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_plans_with_windows(shape: str, is_chunked: bool, size: int) -> None:
    check_plan(SHAPES[shape], SHAPE_SLOTS, ops.Window(size, is_chunked))


def test_a_window_fetches_what_it_holds() -> None:
    items, _, entries = read_plan(under_a_root(1024, [512] * 63), ops.Window(600))
    assert int((items[:, 1] - items[:, 0]).sum()) == 4 * 88 + 63 * 512
    assert int((entries[:, 2] - entries[:, 1]).sum()) == 63 * 600


@pytest.mark.parametrize("num_leaves", [1, ITEM_LEAVES, ITEM_LEAVES + 1, 63])
def test_shared_keys_are_fetched_once_for_sixteen_leaves(num_leaves: int) -> None:
    items, _, entries = read_plan(under_a_root(1024, [512] * num_leaves))
    fetched = int((items[:, 1] - items[:, 0]).sum())
    times = -(-num_leaves // ITEM_LEAVES)
    assert fetched == times * 1024 + num_leaves * 512
    assert len(entries) == num_leaves * 6


def test_partial_results_are_a_tenth_of_what_is_read() -> None:
    # 63 leaves, 1024 keys shared and 512 of each; 32 heads and 8 key/value heads of 128 columns, in bfloat16.
    items, _, entries = read_plan(under_a_root(1024, [512] * 63))
    partial_bytes = 2 * len(entries) * 32 * (128 + 1) * 4
    key_value_bytes = int((items[:, 1] - items[:, 0]).sum()) * 2 * 8 * 128 * 2
    assert partial_bytes < 0.1 * key_value_bytes


def test_leaves_beside_each_other_share_no_item() -> None:
    items, _, _ = read_plan(make_leaf_tables([10, 20, 30], [[], [], []], [9, 29, 59]))
    assert sorted(map(tuple, items[:, :2])) == [(0, 10), (10, 30), (30, 60)]


def test_chunks_are_even() -> None:
    items, _, _ = read_plan(make_leaf_tables([1021], [[]], [1020]))
    ends = sorted(items[:, 1])
    assert [end - start for start, end in pairwise([0, *ends])] == [256, 256, 256, 253]
