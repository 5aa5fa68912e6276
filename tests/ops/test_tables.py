"""Tables that C++ writes and Python and kernels read: both know the same layout, and slicing gives what was written."""

import re
from contextlib import nullcontext, suppress

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gram_fast import ops
from gram_fast.extension import _C
from gram_fast.kernels import tables
from gram_fast.kernels.leaf_attention import leaf_mask
from gram_fast.kernels.tree_attention import tree_mask
from gram_fast.scoring.tree import TokenTree

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
KEPT = 40  # slots behind the pass's own
Spans = tuple[Tensor, Tensor, Tensor]


def test_python_and_cpp_say_the_same() -> None:
    names = {name for name in vars(tables) if name.endswith(("_COLUMNS", "_MULTIPLE"))}
    assert _C.table_layout == {name: getattr(tables, name) for name in names}


def test_tables_of_a_pass_have_their_columns() -> None:
    tree = TokenTree([1, 2])
    tree.add_segment([3, 4, 5])
    leaves = tree.add_sequences([[0]], 1)
    for table in tree.plan(leaves, budget=2, keep_limit=9, more_rounds=True)[0]:
        for name in ("spans", "ranges"):
            assert table[name].shape[1:] == (tables.EXTENT_COLUMNS,)
        assert table["nodes"].shape[1:] == (tables.NODE_COLUMNS,)
        assert table["keep"].shape[1:] == (tables.KEEP_COLUMNS,)
    blocks = _C.attention_blocks([[0, 2], [2, 3]], [0, 0, 1], [[0, 1]])
    assert blocks.shape == (1, tables.BLOCK_COLUMNS)
    made = ops.Spans(*(torch.tensor(x) for x in ([[0, 2], [2, 3]], [0, 0, 1], [[0, 1]])))
    assert ops.PathTables.of(made, 1, CPU).tiles_X4.shape == (2, tables.PATH_TILE_COLUMNS)


@st.composite
def spans(draw: st.DrawFn) -> Spans:
    """Spans of a token or of more than a tile, which read nothing, the same as a neighbour, or many small ranges."""
    lengths = np.array(draw(st.lists(st.sampled_from([1, 2, 3, 7, 31, 97]), min_size=1, max_size=9)))
    ends = np.cumsum(lengths)
    pool = [(int(ends[-1]) + 3 * n, int(ends[-1]) + 3 * n + 1 + n % 3) for n in range(KEPT // 3)]
    reads = [draw(st.lists(st.sampled_from(pool), unique=True, max_size=5)) for _ in lengths]
    same = draw(st.lists(st.booleans(), min_size=len(reads), max_size=len(reads)))
    for n in range(1, len(reads)):
        reads[n] = reads[n - 1] if same[n] else reads[n]
    ranges = torch.tensor([row for read in reads for row in read], dtype=torch.int64)
    return (
        torch.from_numpy(np.stack([ends - lengths, ends], axis=1)),
        torch.from_numpy(np.cumsum([0, *map(len, reads)])),
        ranges.reshape(-1, tables.EXTENT_COLUMNS),
    )


def num_tokens_of(made: Spans) -> int:
    return int(made[0][-1, 1])


def tiles_of(made: Spans, group: int, at_least: tuple[int, int] = (0, 0)) -> Tensor:
    tiles = ops.TreeTables.of(ops.Spans(*made), "triton", group, CPU, at_least).tiles
    assert tiles is not None
    return tiles


def items_of(made: Spans, leaf_rows_L: Tensor, at_least: tuple[int, int] = (0, 0)) -> Tensor:
    items = ops.LeafTables.of(ops.Spans(*made), leaf_rows_L, "extension", CPU, at_least).items
    assert items is not None
    return items


# Rows and columns to fill up to: none, no rows more, some that are no multiples of anything.
AT_LEAST = st.tuples(st.sampled_from([0, 1, 17, 64]), st.sampled_from([0, 1, 13, 101]))


@settings(deadline=None, max_examples=100)
@given(spans(), st.sampled_from([1, 3, 16, 128]), AT_LEAST)
def test_parts_of_a_tile_table(made: Spans, group: int, at_least: tuple[int, int]) -> None:
    num_tokens, (spans_N2, _, ranges_R2) = num_tokens_of(made), made
    table = tiles_of(made, group, at_least)
    assert table.shape[0] >= at_least[0]
    assert table.shape[1] >= at_least[1]
    assert table.numel() >= tables.tile_table_size(len(table), num_tokens, len(ranges_R2))
    tiles, span_starts, ranges = tables.tile_table_parts(table, num_tokens)
    lengths = spans_N2[:, 1] - spans_N2[:, 0]
    assert torch.equal(span_starts.long(), spans_N2[:, 0].repeat_interleave(lengths))
    assert torch.equal(ranges[: len(ranges_R2)].long(), ranges_R2)
    assert not ranges[len(ranges_R2) :].any()
    assert tiles.shape == (len(table), tables.TILE_COLUMNS)
    # The walk of a tile's queries, by hand: its ranges, the span before it, and the tile itself causally.
    reads_TS = torch.zeros(num_tokens, num_tokens + KEPT, dtype=torch.int64)
    for first, end, own_start, first_range, end_range in tiles.tolist():
        for start, stop in [*ranges[first_range:end_range].tolist(), (own_start, first)]:
            reads_TS[first:end, start:stop] += 1
        for token in range(first, end):
            reads_TS[token, max(first, int(span_starts[token])) : token + 1] += 1
    assert torch.equal(reads_TS, tree_mask(*made, num_tokens, num_tokens + KEPT).long())


WINDOWS = st.builds(ops.Window, st.sampled_from([1, 2, 3, 5, 16, 31, 40, 100, 2**40]), st.booleans())


@settings(deadline=None, max_examples=100)
@given(spans(), st.sampled_from([1, 3, 16, 128]), AT_LEAST, WINDOWS)
def test_parts_of_a_tile_table_with_a_window(
    made: Spans, group: int, at_least: tuple[int, int], window: ops.Window
) -> None:
    num_tokens, ranges_R2 = num_tokens_of(made), made[2]
    table = ops.TreeTables.of(ops.Spans(*made), "extension", group, CPU, at_least, window).tiles
    assert table.shape[0] >= at_least[0]
    assert table.shape[1] >= at_least[1]
    assert table.numel() >= tables.tile_table_size(len(table), num_tokens, len(ranges_R2), is_windowed=True)
    tiles, span_starts, ranges, skips, starts = tables.windowed_tile_table_parts(table, num_tokens)
    assert torch.equal(ranges[: len(ranges_R2)].long(), ranges_R2)
    assert not ranges[len(ranges_R2) :].any()
    # The walk by hand: from its start on through the tile's ranges and the span before it, of which each token skips
    # what it does not read, then the tile itself causally.
    reads_TS = torch.zeros(num_tokens, num_tokens + KEPT, dtype=torch.int64)
    for (first, end, own_start, first_range, end_range), walk_start in zip(
        tiles.tolist(), starts.tolist(), strict=True
    ):
        if first == end:
            assert (own_start, first_range, end_range, walk_start) == (0, 0, 0, 0)
            continue
        walk = [*ranges[first_range:end_range].tolist(), [own_start, first]]
        assert walk[0][0] <= walk_start <= walk[0][1]
        walk[0][0] = walk_start
        slots = torch.cat([torch.arange(*extent) for extent in walk])
        assert skips[first] == 0, "no key is walked for nobody"
        for token in range(first, end):
            reads_TS[token, slots[skips[token] :]] += 1
            reads_TS[token, max(first, int(span_starts[token])) : token + 1] += 1
    expected_TS = tree_mask(*made, num_tokens, num_tokens + KEPT, *window)
    assert torch.equal(reads_TS, expected_TS.long())


@settings(deadline=None, max_examples=100)
@given(spans(), st.data(), AT_LEAST)
def test_parts_of_a_leaf_table(made: Spans, data: st.DataObject, at_least: tuple[int, int]) -> None:
    num_tokens = num_tokens_of(made)
    rows = data.draw(st.lists(st.integers(0, num_tokens - 1), min_size=1, max_size=21))
    leaf_rows_L, num_leaves = torch.tensor(rows), len(rows)
    table = items_of(made, leaf_rows_L, at_least)
    assert table.shape[0] >= at_least[0]
    assert table.shape[1] >= at_least[1]
    items, leaf_offsets, entries = tables.leaf_table_parts(table, num_leaves)
    assert items.shape == (len(table), tables.ITEM_COLUMNS)
    num_entries = int(leaf_offsets[-1])
    assert int(items[:, 3].max()) == num_entries
    assert table.numel() >= tables.leaf_table_size(len(table), num_leaves, num_entries)
    assert not entries[num_entries:].any()
    reads_LS = torch.zeros(num_leaves, num_tokens + KEPT, dtype=torch.int64)
    for start, end, first_entry, end_entry in items.tolist():
        for leaf, low, high, partial in entries[first_entry:end_entry].tolist():
            assert start <= low < high <= end
            assert leaf_offsets[leaf] <= partial < leaf_offsets[leaf + 1]
            reads_LS[leaf, low:high] += 1
    assert torch.equal(reads_LS, leaf_mask(*made, leaf_rows_L, num_tokens + KEPT).long())
    assert sorted(entries[:num_entries, 3].tolist()) == list(range(num_entries))
    # Parts are views: what is copied into the table later, they show.
    assert {part.untyped_storage().data_ptr() for part in (items, leaf_offsets, entries)} == {table.data_ptr()}
    assert entries.storage_offset() % tables.OFFSET_MULTIPLE == 0


def test_a_table_without_leaves_has_the_size_asked_for() -> None:
    arguments = (torch.tensor([[0, 3]]), torch.tensor([0, 0]), torch.empty((0, 2), dtype=torch.int64))
    no_leaves = torch.empty(0, dtype=torch.int64)
    assert not len(items_of(arguments, no_leaves))
    table = items_of(arguments, no_leaves, (9, 99))
    assert table.shape == (9, 99)
    assert not table.any()


@pytest.mark.parametrize("end", [2**31, 2**63 - 1])
def test_more_tokens_than_slots_can_be_counted(end: int) -> None:
    """They are refused before anything is made for each of them."""
    made = ops.Spans(torch.tensor([[0, end]]), torch.tensor([0, 0]), torch.empty((0, 2), dtype=torch.int64))
    rows_L = torch.tensor([0])
    for make in (
        lambda: ops.TreeTables.of(made, "triton", 2, CPU),
        lambda: ops.TreeTables.of(made, "cascade", 2, CPU),
        lambda: ops.LeafTables.of(made, rows_L, "extension", CPU),
        lambda: ops.PathTables.of(made, 2, CPU),
    ):
        with pytest.raises(ValueError, match=f"^spans_N2: expected at most 2147483647 tokens, got {end}$"):
            make()


# Values that tables of a pass do not have at most places: too large, negative, beyond 32 bits, overflowing.
WILD = st.sampled_from([-1, 0, 1, 5, 41, 2**20, 2**31 - 1, 2**31, 2**33, 2**62, 2**63 - 1, -(2**31), -(2**63)])


@settings(deadline=None, max_examples=100)
@given(spans(), st.data(), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 200), WILD), min_size=1, max_size=3))
def test_corrupted_tables_are_errors_or_those_of_a_pass(
    made: Spans, data: st.DataObject, changes: list[tuple[int, int, int]]
) -> None:
    num_tokens = num_tokens_of(made)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, num_tokens - 1), min_size=1, max_size=9)))
    given = [table.clone() for table in (*made, rows)]
    for which, place, value in changes:
        if len(flat := given[which].view(-1)):
            flat[place % len(flat)] = value
    if data.draw(st.booleans()):
        given[1] = given[1][:-1]
    *changed, changed_rows = given
    num_slots, is_pass = num_tokens + KEPT, all(map(torch.equal, given, (*made, rows)))
    q_THE, k_SKE, v_SKE = (torch.ones(n, 1, 16) for n in (num_tokens, num_slots, num_slots))
    refused = r"^(spans_N2|range_offsets|ranges_R2|leaf_rows_L|k_SKE): expected "
    for call in (
        lambda: ops.tree_attention(q_THE, k_SKE, v_SKE, *changed, 1.0, "cascade"),
        lambda: ops.tree_attention(q_THE, k_SKE, v_SKE, *changed, 1.0, "extension"),
        lambda: ops.path_attention(q_THE, k_SKE, v_SKE, *changed, 1.0, "reference"),
        lambda: ops.leaf_attention(
            torch.ones(len(rows), 1, 16), k_SKE, v_SKE, *changed, changed_rows, 1.0, "extension"
        ),
    ):
        try:
            ones = call()
        except ValueError as error:
            message = str(error)
        else:  # still tables of a pass in these slots: means of ones
            torch.testing.assert_close(ones, torch.ones_like(ones))
            continue
        assert not is_pass
        assert re.match(refused, message)
    # Tables that are made without the tensors: of a pass in slots of 32 bits, or not at all. Millions of slots could be
    # those of a pass, which only takes long.
    if any(((table >= 2**20) & (table < 2**31)).any() for table in changed):
        return
    made_of = ops.Spans(*changed)
    for make in (
        lambda: ops.TreeTables.of(made_of, "triton", 2, CPU),
        lambda: ops.TreeTables.of(made_of, "cascade", 2, CPU),
        lambda: ops.LeafTables.of(made_of, changed_rows, "extension", CPU),
        lambda: ops.PathTables.of(made_of, 2, CPU),
    ):
        with nullcontext() if is_pass else suppress(ValueError):
            make()


@pytest.mark.parametrize(("rows", "size"), [(1, 0), (1, 1), (3, 7), (64, 64), (64, 2324)])
def test_a_shape_holds_its_size_and_less_than_a_row_more(rows: int, size: int) -> None:
    shape = tables.table_shape(rows, size)
    assert shape[0] == rows
    assert size <= shape[0] * shape[1] < size + rows


def test_filling_up_adds_zeros_behind_the_numbers() -> None:
    table = np.arange(1, 7, dtype=np.int32).reshape(2, 3)
    assert tables.filled_up(table, 3) is table
    filled = tables.filled_up(table, 5)
    assert filled.shape == (2, 5)
    assert filled.ravel().tolist() == [1, 2, 3, 4, 5, 6, 0, 0, 0, 0]
