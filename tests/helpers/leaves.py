"""What the tests of leaf attention and of its plan share: tables of leaves, and shapes that are awkward to either."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from helpers.attention import Ranges, Rounds, passes_of, span_tables, tables_of_lengths

# The constants of csrc/tables/leaf_items.h.
CHUNK_KEYS, ITEM_LEAVES = 256, 16

LeafTables = tuple[Tensor, Tensor, Tensor, Tensor]  # spans [N, 2], range_offsets [N + 1], ranges [R, 2], leaf_rows [L]


def make_leaf_tables(lengths: Sequence[int], reads: Sequence[Ranges], leaf_rows: Sequence[int]) -> LeafTables:
    """Spans of these lengths side by side, the ranges that each reads, and the leaves' last tokens."""
    return *tables_of_lengths(lengths, reads), torch.tensor(leaf_rows, dtype=torch.int64)


def under_a_root(root: int, leaves: Sequence[int]) -> LeafTables:
    """The first leaf goes on where the root ends, the others read the root as a range."""
    lengths = [root + leaves[0], *leaves[1:]]
    return make_leaf_tables(lengths, [[], *[[(0, root)]] * (len(leaves) - 1)], (np.cumsum(lengths) - 1).tolist())


def num_tokens(tables: LeafTables) -> int:
    return int(tables[0][-1, 1])


SHAPES = {
    "one token": make_leaf_tables([1], [[]], [0]),
    "one leaf": make_leaf_tables([523], [[]], [522]),
    "one leaf in the middle of a span": make_leaf_tables([523], [[]], [257]),
    "one token on a long range": make_leaf_tables([1], [[(2, 601)]], [0]),
    "a leaf at every depth of a comb": make_leaf_tables(
        [40] * 13, [[(40 * i, 40 * i + 7) for i in range(n)] for n in range(13)], [40 * n + 39 for n in range(13)]
    ),
    "a leaf at every token of a span": make_leaf_tables([61], [[]], range(61)),
    "a leaf behind every chunk": make_leaf_tables([1021], [[]], [254, 255, 256, 511, 512, 1020]),
    "just more than a chunk, just more than an item": under_a_root(CHUNK_KEYS + 1, [1] * (ITEM_LEAVES + 1)),
    "prime sizes": under_a_root(131, [7, 31, 1, 127, 257]),
    "ranges in many pieces": make_leaf_tables(
        [2, 3], [[(5 + 3 * i, 6 + 3 * i) for i in range(40)], [(5 + 3 * i, 7 + 3 * i) for i in range(40)]], [1, 3, 4]
    ),
    "ranges that touch": make_leaf_tables([4, 3], [[], [(0, 1), (3, 4), (1, 3)]], [2, 6]),
    "kept slots alone": make_leaf_tables([1, 1], [[(300, 599)], [(300, 599), (40, 41)]], [0, 1]),
}
SHAPE_SLOTS = 1100


def leaf_tables_of(made: Rounds) -> Iterator[tuple[LeafTables, int]]:
    """Of all passes in which a leaf ends, each with the number of slots."""
    for tree_pass, num_slots in passes_of(made):
        if len(tree_pass.leaf_rows):
            yield (*span_tables(tree_pass), tree_pass.leaf_rows), num_slots
