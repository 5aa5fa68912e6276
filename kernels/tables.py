"""How the integer tables are laid out that plans hand to kernels: columns, sizes and parts.

The twin of csrc/tables/layout.h, whose numbers are `_C.table_layout`. No other Python file counts columns.

Shape letters: T packed tokens, R key ranges, L leaves, X tiles or items, P partial results.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

TILE_ROWS = 128
"""Rows of a tile that a kernel walks: tokens times query heads of a group. Smaller blocks take a tile in parts."""

EXTENT_COLUMNS = 2
"""Of a span or a range: start, end."""
NODE_COLUMNS = 5
"""Of a node in a pass: start, end, subtree_end, row of the next ancestor or -1, depth."""
KEEP_COLUMNS = 3
"""Of a copy after a pass: start, slot, length."""
BLOCK_COLUMNS = 5
"""Of a block of unmasked attention: rank, first query, past the last, first slot, past the last."""
TILE_COLUMNS = 5
"""Of a tile of tree attention: first query, past the last, own start, first range, past the last range."""
PATH_TILE_COLUMNS = 4
"""Of a tile of path attention: first query, number of them, position of the first, where its path begins."""
ITEM_COLUMNS = 4
"""Of an item of leaf attention: first slot, past the last, first entry, past the last entry."""
ENTRY_COLUMNS = 4
"""Of an entry: leaf, first slot, past the last, number of its partial result."""
OFFSET_MULTIPLE = 4
"""The leaves' offsets are filled up to a multiple of this, so that entries start at multiples of 16 bytes."""


def tile_table_size(num_tiles: int, num_tokens: int, num_ranges: int) -> int:
    """Integers of a table of `attention_tiles`, at least."""
    return TILE_COLUMNS * num_tiles + num_tokens + EXTENT_COLUMNS * num_ranges


def tile_table_parts(table: Tensor, num_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views of the tiles [X, TILE_COLUMNS], the tokens' span starts [T] and the ranges [>= R, EXTENT_COLUMNS].

    Behind the ranges may stand rows of zeros, which fill the table up.
    """
    flat, starts_at = table.view(-1), TILE_COLUMNS * len(table)
    ranges_at = starts_at + num_tokens
    ranges = _rows(flat[ranges_at:], EXTENT_COLUMNS)
    return flat[:starts_at].view(-1, TILE_COLUMNS), flat[starts_at:ranges_at], ranges


def leaf_table_size(num_items: int, num_leaves: int, num_entries: int) -> int:
    """Integers of a table of `leaf_items`, at least."""
    offsets = (num_leaves + OFFSET_MULTIPLE) // OFFSET_MULTIPLE * OFFSET_MULTIPLE
    return ITEM_COLUMNS * num_items + offsets + ENTRY_COLUMNS * num_entries


def leaf_table_parts(table: Tensor, num_leaves: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views of the items [X, ITEM_COLUMNS], the leaves' offsets [L + 1] and the entries [>= P, ENTRY_COLUMNS].

    Zeros that fill the table up count as entries: partial results that nobody writes.
    """
    flat, offsets_at = table.view(-1), ITEM_COLUMNS * len(table)
    entries = _rows(flat[leaf_table_size(len(table), num_leaves, 0) :], ENTRY_COLUMNS)
    return flat[:offsets_at].view(-1, ITEM_COLUMNS), flat[offsets_at : offsets_at + num_leaves + 1], entries


def table_shape(num_rows: int, size: int) -> tuple[int, int]:
    """Rows and columns of a flat table of so many rows that holds at least `size` integers."""
    return num_rows, -(-size // num_rows)


def filled_up(table: NDArray[np.int32], columns: int) -> NDArray[np.int32]:
    """A flat table [rows, c] with zeros at its end, so that it has at least so many columns."""
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
