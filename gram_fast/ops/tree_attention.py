"""`tree_attention`: attention of packed tokens over a forest.

Shape letters: T packed tokens of the pass, S key/value slots, H query heads, K key/value heads, E head width, N spans,
R key ranges.
"""

import functools

import torch
from torch import Tensor

from gram_fast.cascade import cascade_attention
from gram_fast.extension import _C
from gram_fast.kernels.tables import EXTENT_COLUMNS, TILE_ROWS, filled_up, tile_table_size
from gram_fast.kernels.tree_attention import tree_attention_reference
from gram_fast.ops.backends import check_backend
from gram_fast.ops.checks import expect, expect_like, expect_states, on_device_of, uploaded
from gram_fast.ops.merge_states import merge_states

_MERGE = functools.partial(merge_states, backend="extension")


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
    """Attention of T packed tokens over a forest -> [T, H, E], contiguous, dtype as q_THE.

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
        tiles: `attention_tiles` of these tables and H // K, for backend "triton", or None: made here. It depends on
            the pass alone: make it once for all layers. Its content is trusted.

    Raises ValueError on a wrong shape, dtype, stride, device or an index out of range, BackendError on a backend that
    cannot run.
    """
    _check_tree_attention(q_THE, k_SKE, v_SKE, spans_N2, range_offsets, ranges_R2)
    expect(scale > 0, "scale", "a positive number", scale)
    check_backend("tree_attention", backend, q_THE.device, q_THE.dtype, q_THE.shape[2])
    if q_THE.shape[0] == 0:
        return q_THE.new_empty(q_THE.shape)
    if backend == "triton":
        from gram_fast.kernels.tree_attention_triton import tree_attention_triton

        if tiles is None:
            tiles = attention_tiles(spans_N2, range_offsets, ranges_R2, q_THE.shape[1] // k_SKE.shape[1], q_THE.device)
        _check_tiles(tiles, q_THE, k_SKE, len(ranges_R2))
        with on_device_of(q_THE):
            return tree_attention_triton(q_THE, k_SKE, v_SKE, tiles, scale)
    if backend == "reference":
        out_THE = tree_attention_reference(q_THE, k_SKE, v_SKE, spans_N2, range_offsets, ranges_R2, scale)
    else:
        out_THE = cascade_attention(q_THE, k_SKE, v_SKE, spans_N2, range_offsets, ranges_R2, scale, _MERGE)
    return out_THE.contiguous()


@tree_attention.register_fake
def _(
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
    return q_THE.new_empty(q_THE.shape)


def attention_tiles(
    spans_N2: Tensor,
    range_offsets: Tensor,
    ranges_R2: Tensor,
    group: int,
    device: torch.device,
    at_least: tuple[int, int] = (0, 0),
) -> Tensor:
    """What the Triton kernel walks, int32 [X, columns] on `device`: a flat table of as many rows as it has tiles.

    See gram_fast::attention_tiles in csrc/tables/attention_tables.h.

    Args:
        spans_N2, range_offsets, ranges_R2: the tables of a pass, as `tree_attention` takes them.
        group: query heads of a key/value head, 1 to 128.
        device: where the kernel runs. The copy does not wait for it.
        at_least: rows and columns. Where the pass needs fewer, empty tiles and zeros fill them up, so that passes of
            one size can have tables of one size.
    """
    expect(1 <= group <= TILE_ROWS, "group", f"1 to {TILE_ROWS} query heads a key/value head", group)
    tables = (spans_N2.numpy(), range_offsets.numpy(), ranges_R2.numpy())
    table = _C.attention_tiles(*tables, TILE_ROWS // group, at_least[0])
    return uploaded(torch.from_numpy(filled_up(table, at_least[1])), device)


def _check_tiles(tiles: Tensor, q_THE: Tensor, k_SKE: Tensor, num_ranges: int) -> None:
    """The table's size, and what the kernel's integers can hold."""
    expect(tiles.dim() == 2, "tiles", "2 dimensions", tiles.dim())
    expect_like(tiles, "tiles", tuple(tiles.shape), (torch.int32,), q_THE.device)
    is_table = tiles.is_contiguous() and len(tiles) > 0
    is_table = is_table and tiles.numel() >= tile_table_size(len(tiles), len(q_THE), num_ranges)
    expect(is_table, "tiles", f"the table that attention_tiles makes for {len(q_THE)} tokens", tuple(tiles.shape))
    expect(len(k_SKE) < 2**31, "k_SKE", "fewer than 2**31 slots", len(k_SKE))


def _check_tree_attention(
    q_THE: Tensor, k_SKE: Tensor, v_SKE: Tensor, spans_N2: Tensor, range_offsets: Tensor, ranges_R2: Tensor
) -> None:
    expect_states("q_THE", q_THE, k_SKE, v_SKE)
    num_tokens, num_slots = len(q_THE), len(k_SKE)
    expect(num_slots >= num_tokens, "k_SKE", f"at least T = {num_tokens} slots", num_slots)
    check_tables(spans_N2, range_offsets, ranges_R2, num_tokens, num_slots)


def check_tables(spans_N2: Tensor, range_offsets: Tensor, ranges_R2: Tensor, num_tokens: int, num_slots: int) -> None:
    """Raises ValueError unless spans cover [0, T) in order and their ranges lie in the slots."""
    cpu = torch.device("cpu")
    expect(spans_N2.dim() == 2, "spans_N2", "2 dimensions", spans_N2.dim())
    expect(ranges_R2.dim() == 2, "ranges_R2", "2 dimensions", ranges_R2.dim())
    num_spans, num_ranges = len(spans_N2), len(ranges_R2)
    expect_like(spans_N2, "spans_N2", (num_spans, EXTENT_COLUMNS), (torch.int64,), cpu)
    expect_like(range_offsets, "range_offsets", (num_spans + 1,), (torch.int64,), cpu)
    expect_like(ranges_R2, "ranges_R2", (num_ranges, EXTENT_COLUMNS), (torch.int64,), cpu)
    # NumPy on these few integers: a tenth of the time of the same tensor operations.
    spans, offsets, ranges = spans_N2.numpy(), range_offsets.numpy(), ranges_R2.numpy()
    starts, ends = spans[:, 0], spans[:, 1]
    covers = num_tokens == (ends[-1] if num_spans else 0) and (not num_spans or starts[0] == 0)
    expect(
        bool(covers and (starts < ends).all() and (starts[1:] == ends[:-1]).all()),
        "spans_N2",
        f"spans that cover 0 to {num_tokens} in order",
        spans.tolist(),
    )
    expect(
        bool(offsets[0] == 0 and offsets[-1] == num_ranges and (offsets[1:] >= offsets[:-1]).all()),
        "range_offsets",
        f"a rise from 0 to {num_ranges}",
        offsets.tolist(),
    )
    expect(
        bool((ranges[:, 0] >= 0).all() and (ranges[:, 0] < ranges[:, 1]).all() and (ranges[:, 1] <= num_slots).all()),
        "ranges_R2",
        f"0 <= start < end <= {num_slots}",
        ranges.tolist(),
    )
