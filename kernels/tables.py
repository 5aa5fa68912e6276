"""Layout of the integer tables that plans hand to kernels: columns, sizes and parts.

csrc/tables/layout.h has the same numbers in C++ (`_C.table_layout`). No other file counts columns; who reads or
writes a row takes them in the order that stands here.

Shape letters: T packed tokens, R key ranges, L leaves, X tiles or items, P partial results.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TILE_ROWS = 128
"""Most rows of an attention tile: tokens times query heads per key/value head. Smaller blocks take a tile in parts."""

EXTENT_COLUMNS = 2
"""Columns of a span or range: start, end."""
NODE_COLUMNS = 5
"""Columns of a node of a pass: start, end, end of its subtree, row of its nearest ancestor or -1, depth."""
KEEP_COLUMNS = 3
"""Columns of a copy after a pass: start, slot, length."""
PIECE_COLUMNS = 6
"""Columns of a piece of a pass: start, end, level, its parent or -1, slots of states before and behind it or -1."""
BLOCK_COLUMNS = 5
"""Columns of a block of unmasked attention: rank, first query, end, first slot, end."""
TILE_COLUMNS = 5
"""Columns of a tile of tree attention: first query, end, start of its span, first range, end."""
PATH_TILE_COLUMNS = 4
"""Columns of a tile of path attention: first query, number of queries, first position, start of its path."""
ITEM_COLUMNS = 4
"""Columns of an item of leaf attention: first slot, end, first entry, end."""
ENTRY_COLUMNS = 4
"""Columns of an entry of leaf attention: leaf, first slot, end, number of its partial result."""
OFFSET_MULTIPLE = 4
"""The offsets of leaves are filled up to a multiple of this, so that entries start at multiples of 16 bytes."""


def tile_table_size(num_tiles: int, num_tokens: int, num_ranges: int, is_windowed: bool = False) -> int:
    """Fewest integers of a table of `attention_tiles`; `is_windowed`: of one with a window."""
    size = TILE_COLUMNS * num_tiles + num_tokens + EXTENT_COLUMNS * num_ranges
    return size + num_tokens + num_tiles if is_windowed else size


def tile_table_parts(table: Tensor, num_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views of the tiles [X, TILE_COLUMNS], the tokens' span starts [T] and the ranges [>= R, EXTENT_COLUMNS].

    Rows of zeros that fill the table up may follow the ranges.
    """
    flat, starts_at = table.view(-1), TILE_COLUMNS * len(table)
    ranges_at = starts_at + num_tokens
    ranges = _rows(flat[ranges_at:], EXTENT_COLUMNS)
    return flat[:starts_at].view(-1, TILE_COLUMNS), flat[starts_at:ranges_at], ranges


def windowed_tile_table_parts(table: Tensor, num_tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The same views of a table with a window, and the tokens' skips [T] and the tiles' starts [X].

    In memory: tiles, span starts, skips, starts, ranges. Of the keys that its tile walks before the tile's own tokens,
    a token does not read the first `skips`. A tile's walk begins at slot `starts`: in its first range, of which it
    leaves out what stands before, or at its own start where it has no range. The span starts are the lowest own tokens
    that each token reads. Tiles that fill the table up are zeros.
    """
    tiles, span_starts, _ = tile_table_parts(table, num_tokens)
    flat = table.view(-1)[tiles.numel() + num_tokens :]
    ranges_at = num_tokens + len(table)
    return tiles, span_starts, _rows(flat[ranges_at:], EXTENT_COLUMNS), flat[:num_tokens], flat[num_tokens:ranges_at]


def leaf_table_size(num_items: int, num_leaves: int, num_entries: int) -> int:
    """Fewest integers of a table of `leaf_items`."""
    offsets = (num_leaves + OFFSET_MULTIPLE) // OFFSET_MULTIPLE * OFFSET_MULTIPLE
    return ITEM_COLUMNS * num_items + offsets + ENTRY_COLUMNS * num_entries


def leaf_table_parts(table: Tensor, num_leaves: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views of the items [X, ITEM_COLUMNS], the leaves' offsets [L + 1] and the entries [>= P, ENTRY_COLUMNS].

    Zeros that fill the table up count as entries, whose partial results are never written.
    """
    flat, offsets_at = table.view(-1), ITEM_COLUMNS * len(table)
    entries = _rows(flat[leaf_table_size(len(table), num_leaves, 0) :], ENTRY_COLUMNS)
    return flat[:offsets_at].view(-1, ITEM_COLUMNS), flat[offsets_at : offsets_at + num_leaves + 1], entries


def path_tile_tokens(group: int) -> int:
    """Most tokens of a tile of path attention: a power of two that makes at most TILE_ROWS rows with `group` heads."""
    return 1 << (TILE_ROWS // group).bit_length() - 1


def table_shape(num_rows: int, size: int) -> tuple[int, int]:
    """Rows and columns of the smallest flat table with `num_rows` rows that holds `size` integers."""
    return num_rows, -(-size // num_rows)


def filled_up(table: NDArray[np.int32], columns: int) -> NDArray[np.int32]:
    """Fills a flat table [rows, c] up with zeros at its end, to at least `columns` columns."""
    rows, known = table.shape
    if columns <= known:
        return table
    out = np.zeros((rows, columns), np.int32)
    out.reshape(-1)[: table.size] = table.reshape(-1)
    return out


def uploaded(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a CPU tensor to `device` without making the host wait: through pinned memory where that is a GPU."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _rows(flat: Tensor, columns: int) -> Tensor:
    return flat[: len(flat) // columns * columns].view(-1, columns)
