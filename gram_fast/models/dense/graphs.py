"""CUDA graphs of small passes: one for each bucket of token counts, captured once and replayed for every later pass.

A pass of a thousand tokens through a small model takes the GPU less time than the host needs to launch its kernels one
by one. So a small pass is always filled up to a bucket, and its kernels are captured the second time the bucket is
used. All passes of a bucket have the same shapes, so a replayed pass has the bits of a launched one.

Shape letters: T packed tokens, L leaves.
"""

import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gram_fast.devices import capturing, finish
from gram_fast.errors import one_line
from gram_fast.kernels.tables import leaf_table_size, table_shape, tile_table_size, uploaded
from gram_fast.models.dense.attention import PassTables, TableSizes, TreeAndLeafTables
from gram_fast.models.dense.model import DenseShape
from gram_fast.ops import Spans
from gram_fast.scoring.tree import TreePass

BUCKETS = range(128, 2049, 128)
"""Token counts of the buckets."""
# FLOPs of a layer's products up to which a pass is worth a bucket. The host takes some 100 us to launch a layer:
# nine launches of 5 us, and Python. An H100 multiplies at some 600 TFLOP/s in half precision meanwhile.
_LAYER_WORK = 100e-6 * 600e12
# Of FP8: a launch more, which quantizes what attention gives, and twice the rate.
_FP8_LAYER_WORK = 110e-6 * 1200e12
# Sizes of a bucket's other inputs. A pass with more is launched without a graph.
_LEAVES, _RANGES, _ITEMS, _ENTRIES = 16, 128, 64, 512

Tables = PassTables[TreeAndLeafTables]


def most_tokens(shape: DenseShape, is_fp8: bool = False) -> int:
    """Most tokens of a bucket: in a longer pass the host launches a layer faster than the GPU computes it.

    `is_fp8`: whether products are of FP8.
    """
    work = _FP8_LAYER_WORK if is_fp8 else _LAYER_WORK
    attention = 2 * (shape.num_heads + shape.num_kv_heads) * shape.head_dim
    return int(work / (2 * shape.hidden_size * (attention + 3 * shape.intermediate_size)))


@dataclass(frozen=True)
class Bucket:
    """Sizes of all inputs of a captured pass."""

    num_tokens: int
    num_leaves: int
    tables: TableSizes

    @classmethod
    def of(cls, tree_pass: TreePass, tile_tokens: int, most_tokens: int) -> "Bucket | None":
        """The smallest bucket that the pass fits into, or None: without one, or without free slots to fill it up.

        `tile_tokens`: most tokens of a tile of tree attention. `most_tokens`: of a bucket.
        """
        for size in BUCKETS:
            if tree_pass.num_tokens <= size <= min(tree_pass.budget, most_tokens):
                # Every span may end in a tile that is not full.
                tiles, leaves = size // tile_tokens + 32, _LEAVES
                sizes = TableSizes(
                    table_shape(tiles, tile_table_size(tiles, size, _RANGES)),
                    table_shape(tiles, tile_table_size(tiles, size, _RANGES, is_windowed=True)),
                    table_shape(_ITEMS, leaf_table_size(_ITEMS, leaves, _ENTRIES)),
                )
                return cls(size, leaves, sizes) if 0 < len(tree_pass.leaf_rows) <= leaves else None
        return None

    def fill(self, tree_pass: TreePass) -> TreePass:
        """The pass filled up with one more span of the missing tokens, whose last token is also every missing leaf."""
        num_tokens = tree_pass.num_tokens
        missing, missing_leaves = self.num_tokens - num_tokens, self.num_leaves - len(tree_pass.leaf_rows)
        filled = replace(
            tree_pass, leaf_rows=torch.cat([tree_pass.leaf_rows, torch.full((missing_leaves,), self.num_tokens - 1)])
        )
        if missing == 0:
            return filled
        spans_N2, range_offsets, ranges_R2 = tree_pass.spans
        return replace(
            filled,
            input_ids=torch.cat([tree_pass.input_ids, torch.zeros(missing, dtype=torch.int64)]),
            position_ids=torch.cat([tree_pass.position_ids, torch.arange(missing)]),
            spans=Spans(
                torch.cat([spans_N2, torch.tensor([[num_tokens, self.num_tokens]])]),
                torch.cat([range_offsets, range_offsets[-1:]]),
                ranges_R2,
            ),
        )

    def holds(self, tables: Tables) -> bool:
        """Whether tables of a filled pass have the bucket's sizes: they are larger where the pass needs more."""
        expected = (*map(self.tables.of, tables.attention.trees), self.tables.items)
        return tuple(table.shape for table in tables.attention.tensors) == expected


@dataclass(frozen=True)
class _Captured:
    """A graph with its inputs and its output."""

    graph: Any
    inputs: Tables
    logits_L2: Tensor

    def replay(self, tables: Tables) -> Tensor:
        for place, tensor in zip(_tensors(self.inputs), _tensors(tables), strict=True):
            place.copy_(tensor.pin_memory(), non_blocking=True)
        self.graph.replay()
        # The next replay overwrites it.
        return self.logits_L2.clone()


class PassGraphs:
    """CUDA graphs of one model on one device. They share a pool of memory, as no two of them run at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graphs: dict[Bucket, _Captured | None] = {}
        self._refused: set[Bucket] = set()
        """Buckets that could not be captured."""
        self._addresses: Hashable = None
        self._pool: Any = None
        # torch's own stream for captures is shared by the process, on the GPU that captured first.
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def run(self, bucket: Bucket, tables: Tables, addresses: Hashable, launch: Callable[[Tables], Tensor]) -> Tensor:
        """Label logits [L, 2] of a pass that fills its bucket.

        Args:
            bucket: of the pass.
            tables: of the pass, on the CPU.
            addresses: differs from that of the last call if anything moved that `launch` reads, besides its tables and
                the weights.
            launch: runs the pass from tables on the device -> logits.
        """
        if addresses != self._addresses:
            # Replays read inputs that may have been allocated on another stream.
            finish(self._device)
            self._graphs.clear()
            self._refused.clear()
            # A pool is freed with the last of its graphs.
            self._pool, self._addresses = None, addresses
        if bucket not in self._graphs:
            # The first pass compiles kernels and allocates the buffers of keys and values: neither can be captured.
            self._graphs[bucket] = None
        elif self._graphs[bucket] is None and bucket not in self._refused:
            self._graphs[bucket] = self._captured_or_not(bucket, tables, launch)
        captured = self._graphs[bucket]
        return launch(_on(tables, self._device)) if captured is None else captured.replay(tables)

    def _captured_or_not(self, bucket: Bucket, tables: Tables, launch: Callable[[Tables], Tensor]) -> _Captured | None:
        """Captures the pass. Where that fails, memory having run out say, it warns: what is launched needs no graph."""
        try:
            return self._capture(tables, launch)
        except RuntimeError as error:
            self._refused.add(bucket)
            warnings.warn(
                f"passes of {bucket.num_tokens} tokens are launched kernel by kernel, which is slower: their CUDA "
                f"graph could not be captured ({one_line(error)})",
                stacklevel=2,
            )
        return None

    def _capture(self, tables: Tables, launch: Callable[[Tables], Tensor]) -> _Captured:
        inputs = _on(tables, self._device)
        graph = torch.cuda.CUDAGraph()
        caller = torch.cuda.current_stream(self._device)
        # This context brings the caller's stream back even where a capture without memory cannot be ended.
        with capturing, torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            self._stream.wait_stream(caller)
            try:
                # cuBLAS makes a handle for every thread and a workspace for every stream, neither within a capture.
                launch(inputs)
            finally:
                # Memory may run out here, and the caller then gives its buffers to others.
                caller.wait_stream(self._stream)
            # Threads of other judges may launch meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                logits_L2 = launch(inputs)
        self._pool = graph.pool()
        return _Captured(graph, inputs, logits_L2)


def _tensors(tables: Tables) -> tuple[Tensor, ...]:
    """All tables that a captured pass reads."""
    return (tables.input_ids_T, tables.position_ids_T, tables.leaf_rows_L, *tables.attention.tensors)


def _on(tables: Tables, device: torch.device) -> Tables:
    """The tables copied to `device`; the host does not wait."""
    return PassTables(
        uploaded(tables.input_ids_T, device),
        uploaded(tables.position_ids_T, device),
        uploaded(tables.leaf_rows_L, device),
        tables.attention.on(device),
    )
