"""`tree_attention`: attention of packed tokens, each over its path in a forest of shared prefixes.

Shape letters: T packed tokens of the pass, S key/value slots, H query heads, K key/value heads, E head width, N spans,
R key ranges, X tiles.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from gram_fast.kernels.tables import tile_table_size
from gram_fast.kernels.tree_attention import tree_attention_reference
from gram_fast.kernels.tree_attention_cascade import cascade_attention
from gram_fast.ops.backends import Backends, check_backend
from gram_fast.ops.checks import check_states, expect, on_device_of
from gram_fast.ops.merge_states import implementation as merge_states_on
from gram_fast.ops.tables import MAX_SLOTS, Spans, TreeTables

BACKENDS = Backends(("reference", "cascade", "triton"))

AttendTree = Callable[[Tensor, Tensor, Tensor, TreeTables, float], Tensor]
"""(q_THE, k_SKE, v_SKE, tables, scale) -> attention [T, H, E], contiguous."""


def implementation(backend: str) -> AttendTree:
    """The function that runs `tree_attention` on a backend. It trusts its arguments and tables made for it."""
    return {"reference": _reference, "cascade": _cascade, "triton": _triton}[backend]


def _reference(q_THE: Tensor, k_SKE: Tensor, v_SKE: Tensor, tables: TreeTables, scale: float) -> Tensor:
    return tree_attention_reference(q_THE, k_SKE, v_SKE, *tables.spans, scale).contiguous()


_MERGE = merge_states_on("extension")


def _cascade(q_THE: Tensor, k_SKE: Tensor, v_SKE: Tensor, tables: TreeTables, scale: float) -> Tensor:
    assert tables.cascade is not None
    return cascade_attention(q_THE, k_SKE, v_SKE, tables.cascade, scale, _MERGE)


def _triton(q_THE: Tensor, k_SKE: Tensor, v_SKE: Tensor, tables: TreeTables, scale: float) -> Tensor:
    from gram_fast.kernels.tree_attention_triton import tree_attention_triton

    assert tables.tiles is not None
    return tree_attention_triton(q_THE, k_SKE, v_SKE, tables.tiles, scale)


@torch.library.custom_op("gram_fast::tree_attention", mutates_args=())
def tree_attention(
    q_THE: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    spans_N2: Tensor,
    range_offsets: Tensor,
    ranges_R2: Tensor,
    scale: float,
    backend: str,
    tiles: Tensor | None = None,
) -> Tensor:
    """Computes attention of T packed tokens over their paths -> [T, H, E], contiguous, dtype as q_THE.

    The tokens of a span read each other causally (slots [start, end)) and the slots of the span's ranges without a
    mask; softmax over both together.

    Args:
        q_THE: queries [T, H, E], float32, float16 or bfloat16.
        k_SKE, v_SKE: keys and values [S, K, E], S >= T; slots [0, T) belong to the packed tokens. H is a multiple of K.
        spans_N2: int64 [N, 2] on the CPU: start, end; they cover [0, T) in order.
        range_offsets: int64 [N + 1] on the CPU: rows of `ranges_R2` that each span reads.
        ranges_R2: int64 [R, 2] on the CPU: slots [start, end), 0 <= start < end <= S. Ranges of one span are disjoint.
        scale: factor on the scores, above 0, usually E ** -0.5.
        backend: one of BACKENDS["tree_attention"] (see resolve_backend for "auto").
        tiles: for backend "triton", the result of `attention_tiles` for these tables and H // K, the same for all
            layers of a pass, whose content is trusted; None to make it here.

    Raises ValueError on a wrong shape, dtype, stride, device or an index out of range, BackendError on a backend that
    cannot run.
    """
    sizes = check_states("q_THE", q_THE, k_SKE, v_SKE)
    num_tokens, num_slots, group = sizes["T"], sizes["S"], sizes["H"] // sizes["K"]
    expect(num_slots >= num_tokens, "k_SKE", f"at least T = {num_tokens} slots", num_slots)
    spans = Spans(spans_N2, range_offsets, ranges_R2).check(num_slots, num_tokens)
    expect(scale > 0, "scale", "a positive number", scale)
    check_backend("tree_attention", backend, q_THE.device, q_THE.dtype, sizes["E"])
    if not num_tokens:
        return q_THE.new_empty(q_THE.shape)
    if backend == "triton":
        expect(num_slots <= MAX_SLOTS, "k_SKE", f"at most {MAX_SLOTS} slots", num_slots)
    if backend == "triton" and tiles is not None:
        _check_tiles(tiles, q_THE, len(ranges_R2))
        tables = TreeTables(spans, tiles)
    else:
        tables = TreeTables.of(spans, backend, group, q_THE.device)
    with on_device_of(q_THE):
        return implementation(backend)(q_THE, k_SKE, v_SKE, tables, scale)


@tree_attention.register_fake
def _(q_THE: Tensor, *_: object, **__: object) -> Tensor:
    return q_THE.new_empty(q_THE.shape)


def attention_tiles(
    spans_N2: Tensor,
    range_offsets: Tensor,
    ranges_R2: Tensor,
    group: int,
    device: torch.device,
    at_least: tuple[int, int] = (0, 0),
) -> Tensor:
    """Makes the table of `tree_attention`'s Triton kernel: int32 [X, columns] on `device`, one row for each of X tiles.

    For callers that use it more than once. gram_fast::attention_tiles (csrc/tables/attention_tables.h) describes it.

    Args:
        spans_N2, range_offsets, ranges_R2: the tables of a pass, as `tree_attention` takes them.
        group: query heads per key/value head, 1 to 128.
        device: device of the kernel. The host does not wait for the copy.
        at_least: fewest rows and columns, filled up with empty tiles and zeros.

    Raises ValueError on a wrong table or group.
    """
    spans = Spans(spans_N2, range_offsets, ranges_R2).check(MAX_SLOTS)
    tiles = TreeTables.of(spans, "triton", group, device, at_least).tiles
    assert tiles is not None
    return tiles


def _check_tiles(tiles: Tensor, q_THE: Tensor, num_ranges: int) -> None:
    """Raises ValueError unless the table is large enough for the pass."""
    expect(tiles.dim() == 2, "tiles", "2 dimensions", tiles.dim())
    expect(tiles.dtype == torch.int32, "tiles", str(torch.int32), tiles.dtype)
    expect(tiles.device == q_THE.device, "tiles", f"device {q_THE.device}", tiles.device)
    is_table = tiles.is_contiguous() and len(tiles) > 0
    is_table = is_table and tiles.numel() >= tile_table_size(len(tiles), len(q_THE), num_ranges)
    expect(is_table, "tiles", f"the table that attention_tiles makes for {len(q_THE)} tokens", tuple(tiles.shape))
