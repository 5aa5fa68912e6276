"""The two kinds of attention of the dense runner, bound to backends when a model is loaded, and their tables.

Shape letters: T packed tokens, L leaves, H query heads, E head width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import torch
from torch import Tensor

from gram_fast import ops
from gram_fast.kernels.tables import uploaded
from gram_fast.models.dense.model import Attend
from gram_fast.ops import LeafTables, PathTables, TreeTables
from gram_fast.ops.tables import Window
from gram_fast.scoring.tree import TreePass


@dataclass(frozen=True)
class TableSizes:
    """Fewest rows and columns of the tables of tree attention and of leaf attention."""

    tiles: tuple[int, int] = (0, 0)
    windowed_tiles: tuple[int, int] = (0, 0)
    """Of tree attention with a window."""
    items: tuple[int, int] = (0, 0)

    def of(self, window: Window | None) -> tuple[int, int]:
        """Those of tree attention with that window."""
        return self.tiles if window is None else self.windowed_tiles


@dataclass(frozen=True)
class TreeAndLeafTables:
    """Tables of one pass for TreeAttention."""

    trees: Mapping[Window | None, TreeTables]
    """By the windows of layers."""
    leaves: LeafTables
    """Of the last layer."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Tables that kernels read on the device."""
        tables = (*(tree.tiles for tree in self.trees.values()), self.leaves.items)
        return tuple(table for table in tables if table is not None)

    def on(self, device: torch.device) -> "TreeAndLeafTables":
        """The tables copied to `device`; the host does not wait."""
        return TreeAndLeafTables(
            {window: tree.on(device) for window, tree in self.trees.items()}, self.leaves.on(device)
        )


Tables = TypeVar("Tables", TreeAndLeafTables, PathTables)


@dataclass(frozen=True)
class PassTables(Generic[Tables]):
    """Token ids, positions, leaf rows and attention tables of one pass, made once for all layers."""

    input_ids_T: Tensor
    """int64 [T]"""
    position_ids_T: Tensor
    """int64 [T]"""
    leaf_rows_L: Tensor
    """int64 [L]: packed row of each leaf's last token."""
    attention: Tables

    @classmethod
    def of(cls, tree_pass: TreePass, attention: Tables, device: torch.device) -> "PassTables[Tables]":
        """Copies the integers of a pass to `device`, where its attention tables are."""
        ids = (tree_pass.input_ids, tree_pass.position_ids, tree_pass.leaf_rows)
        input_ids_T, position_ids_T, leaf_rows_L = (uploaded(tensor, device) for tensor in ids)
        return cls(input_ids_T, position_ids_T, leaf_rows_L, attention)


class TreeAttention:
    """Attention of the fast mode: `tree_attention` in all layers but the last, `leaf_attention` in the last."""

    def __init__(
        self, tree_backend: str, leaf_backend: str, group: int, scale: float, windows: Sequence[Window | None]
    ) -> None:
        """`group`: query heads per key/value head; `scale`: factor on the scores; `windows`: of every layer."""
        self._backends, self._group, self._scale, self._windows = (tree_backend, leaf_backend), group, scale, windows
        self._attend = ops.bind("tree_attention", tree_backend)
        self._attend_leaves = ops.bind("leaf_attention", leaf_backend)

    def tables(
        self, tree_pass: TreePass, device: torch.device, at_least: TableSizes = TableSizes()
    ) -> PassTables[TreeAndLeafTables]:
        """Makes the tables of a pass on `device`."""
        tree_backend, leaf_backend = self._backends
        spans = tree_pass.spans
        trees = {
            window: TreeTables.of(spans, tree_backend, self._group, device, at_least.of(window), window=window)
            for window in dict.fromkeys(self._windows[:-1])
        }
        leaves = LeafTables.of(
            spans, tree_pass.leaf_rows, leaf_backend, device, at_least.items, window=self._windows[-1]
        )
        return PassTables.of(tree_pass, TreeAndLeafTables(trees, leaves), device)

    def over(self, tables: PassTables[TreeAndLeafTables]) -> tuple[list[Attend], Attend]:
        """Functions over the tables: attention of all tokens in every layer, and of the last token of each leaf."""
        trees = tables.attention.trees
        return (
            [partial(self._attend, tables=trees[window], scale=self._scale) for window in self._windows[:-1]],
            partial(self._attend_leaves, tables=tables.attention.leaves, scale=self._scale),
        )


class PathAttention:
    """Attention of the deterministic mode: `path_attention` in every layer.

    The bits of a token do not depend on what else is in the pass.
    """

    def __init__(self, backend: str, group: int, scale: float, num_layers: int) -> None:
        """Arguments as TreeAttention; it has no windows."""
        self._group, self._scale, self._num_layers = group, scale, num_layers
        self._attend = ops.bind("path_attention", backend)

    def tables(self, tree_pass: TreePass, device: torch.device) -> PassTables[PathTables]:
        """Makes the tables of a pass on `device`."""
        return PassTables.of(tree_pass, PathTables.of(tree_pass.spans, self._group, device), device)

    def over(self, tables: PassTables[PathTables]) -> tuple[list[Attend], Attend]:
        """Functions over the tables: attention of all tokens in every layer, and of the last token of each leaf."""
        attend = partial(self._attend, tables=tables.attention, scale=self._scale)
        return [attend] * (self._num_layers - 1), partial(_attend_leaves, attend, tables)


def _attend_leaves(
    attend: Attend, tables: PassTables[PathTables], q_LHE: Tensor, k_SKE: Tensor, v_SKE: Tensor
) -> Tensor:
    """Attention of the leaves' last tokens, with zeros as queries of all others: in one layer the waste is small."""
    q_THE = q_LHE.new_zeros(len(tables.input_ids_T), *q_LHE.shape[1:])
    q_THE[tables.leaf_rows_L] = q_LHE
    return attend(q_THE, k_SKE, v_SKE)[tables.leaf_rows_L]
