"""What the kernels of one pass read besides weights, and its attention over keys and values in the store.

Shape letters: T packed tokens, L leaves, S key/value slots, H query heads, K key/value heads, E head width.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gram_fast import ops
from gram_fast.models.dense.model import DenseShape
from gram_fast.ops.checks import uploaded
from gram_fast.scoring.key_values import KeyValueStore
from gram_fast.scoring.tree import TreePass

_CPU = torch.device("cpu")
_NO_TABLE = torch.empty(0, dtype=torch.int32)


@dataclass(frozen=True)
class TableSizes:
    """Rows and columns, at least, of the tables of tree attention and of leaf attention."""

    tiles: tuple[int, int] = (0, 0)
    items: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class PassTables:
    """Integers of one pass, made on the CPU, once for all layers."""

    input_ids_T: Tensor
    """int64 [T]"""
    position_ids_T: Tensor
    """int64 [T]"""
    leaf_rows_L: Tensor
    """int64 [L]"""
    of_attention: tuple[Tensor, Tensor]
    """Tiles and items for TreeAttention, tiles and slots for PathAttention; empty where its backends need none."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them."""
        return (self.input_ids_T, self.position_ids_T, self.leaf_rows_L, *self.of_attention)

    def on(self, device: torch.device) -> "PassTables":
        """Copies on `device`, which nobody waits for."""
        input_ids_T, position_ids_T, leaf_rows_L, first, second = (uploaded(t, device) for t in self.tensors)
        return PassTables(input_ids_T, position_ids_T, leaf_rows_L, (first, second))


def tree_tables(
    tree_pass: TreePass, group: int, backends: Mapping[str, str], at_least: TableSizes = TableSizes()
) -> PassTables:
    """Tables on the CPU for TreeAttention with those backends and `group` query heads a key/value head."""
    spans = (tree_pass.spans, tree_pass.range_offsets, tree_pass.ranges)
    tiles = items = _NO_TABLE
    if backends["tree_attention"] == "triton":
        tiles = ops.attention_tiles(*spans, group, _CPU, at_least.tiles)
    if backends["leaf_attention"] != "reference" and len(tree_pass.leaf_rows):
        items = ops.leaf_items(*spans, tree_pass.leaf_rows, _CPU, at_least.items)
    return PassTables(tree_pass.input_ids, tree_pass.position_ids, tree_pass.leaf_rows, (tiles, items))


def path_tables(tree_pass: TreePass, group: int) -> PassTables:
    """Tables on the CPU for PathAttention."""
    of_attention = ops.path_tiles(tree_pass.spans, tree_pass.range_offsets, tree_pass.ranges, group, _CPU)
    return PassTables(tree_pass.input_ids, tree_pass.position_ids, tree_pass.leaf_rows, of_attention)


class _InSlots:
    """Where the keys and values of a pass lie."""

    def __init__(self, shape: DenseShape, store: KeyValueStore, like: Tensor) -> None:
        self._kv_shape, self._store, self._like = (shape.num_kv_heads, shape.head_dim), store, like
        self.scale = shape.head_dim**-0.5

    def buffers(self, layer: int) -> tuple[Tensor, Tensor]:
        """As of Attention."""
        return self._store.buffers(layer, self._kv_shape, self._like)


class TreeAttention(_InSlots):
    """`tree_attention` in all layers but the last, `leaf_attention` there."""

    def __init__(
        self,
        shape: DenseShape,
        store: KeyValueStore,
        like: Tensor,
        tree_pass: TreePass,
        tables: PassTables,
        backends: Mapping[str, str],
    ) -> None:
        """`like`: a tensor of the model's dtype and device, where `tables` are."""
        super().__init__(shape, store, like)
        self._spans = (tree_pass.spans, tree_pass.range_offsets, tree_pass.ranges)
        self._leaf_rows, self._backends = tree_pass.leaf_rows, backends
        self._tiles, self._items = (table if table.numel() else None for table in tables.of_attention)

    def of_tokens(self, layer: int, q_THE: Tensor) -> Tensor:
        """As of Attention."""
        backend = self._backends["tree_attention"]
        return ops.tree_attention(  # type: ignore[no-any-return]
            q_THE, *self.buffers(layer), *self._spans, self.scale, backend, self._tiles
        )

    def of_leaves(self, layer: int, q_LHE: Tensor) -> Tensor:
        """As of Attention."""
        backend = self._backends["leaf_attention"]
        return ops.leaf_attention(  # type: ignore[no-any-return]
            q_LHE, *self.buffers(layer), *self._spans, self._leaf_rows, self.scale, backend, self._items
        )


class PathAttention(_InSlots):
    """`path_attention` in every layer: what a token gets does not depend on what else is in the pass."""

    def __init__(
        self, shape: DenseShape, store: KeyValueStore, like: Tensor, tables: PassTables, backends: Mapping[str, str]
    ) -> None:
        """`like`: a tensor of the model's dtype and device, where `tables` are."""
        super().__init__(shape, store, like)
        self._tables, self._backend = tables, backends["path_attention"]

    def of_tokens(self, layer: int, q_THE: Tensor) -> Tensor:
        """As of Attention."""
        return ops.path_attention(  # type: ignore[no-any-return]
            q_THE, *self.buffers(layer), *self._tables.of_attention, self.scale, backend=self._backend
        )

    def of_leaves(self, layer: int, q_LHE: Tensor) -> Tensor:
        """As of Attention, with queries of all tokens, zero but for the ends: in one layer the waste is small."""
        rows_L = self._tables.leaf_rows_L
        q_THE = q_LHE.new_zeros(len(self._tables.input_ids_T), *q_LHE.shape[1:])
        q_THE[rows_L] = q_LHE
        return self.of_tokens(layer, q_THE)[rows_L]
