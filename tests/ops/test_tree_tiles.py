"""The tiles that tree attention is cut into on a GPU: what they read, and trees that fill them in odd ways."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from helpers.attention import (
    Rounds,
    Tables,
    check_tree_attention,
    make_tables,
    passes_of,
    random_inputs,
    rounds,
    span_tables,
    tables_of_lengths,
)
from helpers.ops import on_each_device, on_each_dtype, skip_what_cannot_run
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gram_fast import ops
from gram_fast.extension import _C
from gram_fast.kernels.tree_attention import tree_mask
from gram_fast.scoring.tree import TokenTree, plan_round

pytestmark = pytest.mark.usefixtures("one_thread")


def tiles_of(tables: Tables, tile_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tiles [X, 5], ranges [R, 2] and span starts [T] of the flat table."""
    table = torch.from_numpy(_C.attention_tiles(*(table.numpy() for table in tables), tile_tokens)).long()
    sizes = 5 * len(table), int(tables[0][-1, 1]), 2 * len(tables[2])
    tiles, span_starts, ranges, fill = table.flatten().split([*sizes, table.numel() - sum(sizes)])
    assert len(fill) < len(table)
    assert not fill.any()
    return tiles.reshape(-1, 5), ranges.reshape(-1, 2), span_starts


def mask_of_tiles(tables: Tables, tile_tokens: int, num_slots: int) -> Tensor:
    """How often every query reads every slot, [T, S], when the kernel's walk is followed by hand."""
    tiles, ranges, span_starts = tiles_of(tables, tile_tokens)
    reads_TS = torch.zeros(len(span_starts), num_slots, dtype=torch.int64)
    for first, end, own_start, range_begin, range_end in tiles.tolist():
        for start, stop in [*ranges[range_begin:range_end].tolist(), (own_start, first)]:
            reads_TS[first:end, start:stop] += 1
        for token in range(first, end):
            reads_TS[token, max(first, int(span_starts[token])) : token + 1] += 1
    return reads_TS


@settings(deadline=None, max_examples=60)
@given(rounds(), st.sampled_from([1, 3, 18, 32]))
def test_tiles_read_every_visible_slot_once(made: Rounds, tile_tokens: int) -> None:
    for tree_pass, num_slots in passes_of(made):
        tables = span_tables(tree_pass)
        expected_TS = tree_mask(*tables, tree_pass.num_tokens, num_slots)
        assert torch.equal(mask_of_tiles(tables, tile_tokens, num_slots), expected_TS.long())
        tiles, _, _ = tiles_of(tables, tile_tokens)
        assert (tiles[:, 1] - tiles[:, 0] <= tile_tokens).all()


def test_short_spans_share_tiles_and_the_longest_walk_comes_first() -> None:
    # A root of 64 and a thousand children of 3: ten to a tile of 32. Then one that reads something else.
    tables = tables_of_lengths([64, *[3] * 1000, 2], [[], *[[(0, 64)]] * 1000, [(0, 63)]])
    tiles, _, _ = tiles_of(tables, 32)
    assert len(tiles) == 2 + 100 + 1
    sizes = tiles[:, 1] - tiles[:, 0]
    keys = sizes + torch.where(tiles[:, 3] < tiles[:, 4], 64, 0) + tiles[:, 0] - tiles[:, 2]
    assert keys[0] == 64 + 30
    # Of a span's tiles each counts the whole span before it, the diagonal included.
    assert (keys[:-1] >= keys[1:]).all()


@on_each_device
@on_each_dtype
@pytest.mark.parametrize("heads", [(2, 2), (7, 1), (12, 4), (71, 1), (20, 4)])
def test_triton_takes_any_group_of_heads(heads: tuple[int, int], dtype: torch.dtype, device: str) -> None:
    """Groups that do not divide a tile, and tiles of many spans."""
    skip_what_cannot_run("tree_attention", "triton", device, dtype)
    lengths = [17, *[1, 5, 2, 1, 1, 37, 2, 4] * 2]
    tables = tables_of_lengths(lengths, [[], *[[(0, 17)]] * 10, *[[(0, 12), (125, 129)]] * 6])
    num_tokens = sum(lengths)
    check_tree_attention(random_inputs(num_tokens, num_tokens + 7, heads, 16, dtype), tables, "triton", device)


@pytest.mark.gpu
@pytest.mark.large_memory
def test_triton_on_a_cache_of_more_than_2_to_the_31_elements() -> None:
    """Slots behind element 2^31 are read where they lie: 4.5 GiB of keys and values."""
    num_slots, heads, width = 2**20 + 2**18, (32, 16), 128
    q_THE = torch.randn(5, heads[0], width, device="cuda", dtype=torch.bfloat16)
    k_SKE = torch.randn(num_slots, heads[1], width, device="cuda", dtype=torch.bfloat16)
    v_SKE = torch.randn_like(k_SKE)
    tables = make_tables([(0, 5)], [[(num_slots - 100, num_slots)]])
    far = ops.tree_attention(q_THE, k_SKE, v_SKE, *tables, width**-0.5, "triton")
    k_near, v_near = (torch.cat([x[:5], x[-100:]]) for x in (k_SKE, v_SKE))
    near = ops.tree_attention(q_THE, k_near, v_near, *make_tables([(0, 5)], [[(5, 105)]]), width**-0.5, "triton")
    assert torch.equal(far, near)


def tables_of_tree(sequences: Sequence[Sequence[int]]) -> tuple[Tables, int]:
    """The tables of one pass over all tokens of these sequences, and how many there are."""
    tree = TokenTree([])
    for ids in sequences:
        tree.add_segment(ids)
    leaves = tree.add_sequences(np.arange(len(sequences))[:, None], 0)
    (tree_pass,) = plan_round(tree, leaves, budget=10**6, keep_limit=0, more_rounds=False).passes
    return span_tables(tree_pass), tree_pass.num_tokens


@on_each_device
@on_each_dtype
@pytest.mark.parametrize("backend", ["cascade", "triton", "extension"])
def test_a_leaf_at_every_depth(backend: str, dtype: torch.dtype, device: str) -> None:
    skip_what_cannot_run("tree_attention", backend, device, dtype)
    comb = [[*range(3 * depth), 1000 + depth, 2000 + depth] for depth in range(1, 14)]
    tables, num_tokens = tables_of_tree(comb)
    check_tree_attention(random_inputs(num_tokens, num_tokens, (4, 2), 16, dtype), tables, backend, device)


@on_each_device
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_triton_packs_thousands_of_tiny_nodes(dtype: torch.dtype, device: str) -> None:
    """2,000 leaves of one to three tokens below one root: 32 tokens a tile, not one node."""
    skip_what_cannot_run("tree_attention", "triton", device, dtype)
    tables, num_tokens = tables_of_tree([[*range(37), 1000 + leaf, *range(leaf % 3)] for leaf in range(2000)])
    check_tree_attention(random_inputs(num_tokens, num_tokens, (4, 1), 16, dtype), tables, "triton", device)
    assert len(tiles_of(tables, 32)[0]) < 1.1 * num_tokens / 32


def test_tiles_without_tokens_are_refused() -> None:
    spans, offsets, ranges = np.array([[0, 3]]), np.array([0, 0]), np.empty((0, 2), np.int64)
    with pytest.raises(ValueError, match=r"^tile_tokens: expected at least 1, got 0$"):
        _C.attention_tiles(spans, offsets, ranges, 0)
