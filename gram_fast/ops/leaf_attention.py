"""`leaf_attention`: attention of the last token of each leaf, all that the last layer needs.

Shape letters: L leaves, T packed tokens of the pass, S key/value slots, H query heads, K key/value heads, E head width,
N spans, R key ranges, X items, P partial results.
"""

import torch
from torch import Tensor

from gram_fast.extension import _C
from gram_fast.kernels.leaf_attention import leaf_attention_reference
from gram_fast.kernels.tables import filled_up, leaf_table_parts, leaf_table_size
from gram_fast.ops.backends import check_backend
from gram_fast.ops.checks import (
    DTYPES,
    expect,
    expect_like,
    expect_states,
    on_device_of,
    stream_of,
    uploaded,
)
from gram_fast.ops.tree_attention import check_tables

_MAX_SLOTS = 2**31 - 1  # what the table's integers hold


@torch.library.custom_op("gram_fast::leaf_attention", mutates_args=())
def leaf_attention(
    q_LHE: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    spans_N2: Tensor,
    range_offsets: Tensor,
    ranges_R2: Tensor,
    leaf_rows_L: Tensor,
    scale: float,
    backend: str,
    items: Tensor | None = None,
) -> Tensor:
    """Attention of the last token of each leaf over its path -> [L, H, E], contiguous, dtype as q_LHE.

    A leaf whose last token is packed row t of a span reads slots [span start, t] and the slots of the span's ranges:
    the row of `tree_attention` at t, whose keys and values leaves that share them read once.

    Args:
        q_LHE: queries [L, H, E], float32, float16 or bfloat16, E at most 256.
        k_SKE, v_SKE: keys and values [S, K, E], S >= T; slots [0, T) belong to the packed tokens. H is a multiple of K.
        spans_N2: int64 [N, 2] on the CPU: start, end; they cover [0, T) in order.
        range_offsets: int64 [N + 1] on the CPU: rows of `ranges_R2` that each span reads.
        ranges_R2: int64 [R, 2] on the CPU: slots [start, end), 0 <= start < end <= S. Ranges of one span are disjoint.
        leaf_rows_L: int64 [L] on the CPU, 0 <= row < T.
        scale: factor on the scores, above 0, usually E ** -0.5.
        backend: one of BACKENDS["leaf_attention"] (see resolve_backend for "auto").
        items: `leaf_items` of these tables, or None: made here. Its content is trusted.

    Raises ValueError on a wrong shape, dtype, stride, device or an index out of range, BackendError on a backend that
    cannot run.
    """
    _check_states(q_LHE, k_SKE, v_SKE)
    num_tokens = _check_tables_and_rows(spans_N2, range_offsets, ranges_R2, leaf_rows_L, len(k_SKE))
    expect(len(k_SKE) >= num_tokens, "k_SKE", f"at least T = {num_tokens} slots", len(k_SKE))
    expect(len(leaf_rows_L) == len(q_LHE), "leaf_rows_L", f"L = {len(q_LHE)} rows", len(leaf_rows_L))
    expect(scale > 0, "scale", "a positive number", scale)
    check_backend("leaf_attention", backend, q_LHE.device, q_LHE.dtype)
    if q_LHE.numel() == 0:
        return q_LHE.new_empty(q_LHE.shape)
    if backend == "reference":
        tables = (spans_N2, range_offsets, ranges_R2, leaf_rows_L)
        return leaf_attention_reference(q_LHE, k_SKE, v_SKE, *tables, scale).contiguous()

    if items is None:
        items = leaf_items(spans_N2, range_offsets, ranges_R2, leaf_rows_L, q_LHE.device)
    (num_leaves, num_heads, width), num_kv_heads = q_LHE.shape, k_SKE.shape[1]
    _check_items(items, q_LHE)
    parts = leaf_table_parts(items, num_leaves)
    partial_out_PHE = torch.empty((len(parts[-1]), num_heads, width), dtype=torch.float32, device=q_LHE.device)
    partial_lse_PH = torch.empty(partial_out_PHE.shape[:2], dtype=torch.float32, device=q_LHE.device)
    with on_device_of(q_LHE):
        if backend == "triton":
            from gram_fast.kernels.leaf_attention_triton import leaf_attention_triton

            return leaf_attention_triton(q_LHE, k_SKE, v_SKE, *parts, partial_out_PHE, partial_lse_PH, scale)
        out_LHE = torch.empty((num_leaves, num_heads, width), dtype=q_LHE.dtype, device=q_LHE.device)
        _C.leaf_attention(
            q_LHE.data_ptr(),
            q_LHE.stride()[:2],
            k_SKE.data_ptr(),
            k_SKE.stride()[:2],
            v_SKE.data_ptr(),
            v_SKE.stride()[:2],
            items.data_ptr(),
            len(items),
            partial_out_PHE.data_ptr(),
            partial_lse_PH.data_ptr(),
            out_LHE.data_ptr(),
            scale,
            DTYPES.index(q_LHE.dtype),
            (num_leaves, num_heads, num_kv_heads, width),
            stream_of(q_LHE),
        )
    return out_LHE


@leaf_attention.register_fake
def _(
    q_LHE: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    spans_N2: Tensor,
    range_offsets: Tensor,
    ranges_R2: Tensor,
    leaf_rows_L: Tensor,
    scale: float,
    backend: str,
    items: Tensor | None = None,
) -> Tensor:
    return q_LHE.new_empty(q_LHE.shape)


def leaf_items(
    spans_N2: Tensor,
    range_offsets: Tensor,
    ranges_R2: Tensor,
    leaf_rows_L: Tensor,
    device: torch.device,
    at_least: tuple[int, int] = (0, 0),
) -> Tensor:
    """What the kernels walk, int32 [X, columns] on `device`: a flat table of as many rows as it has items.

    Args:
        spans_N2, range_offsets, ranges_R2, leaf_rows_L: the tables of a pass, as `leaf_attention` takes them.
        device: where the kernel runs. The copy does not wait for it.
        at_least: rows and columns. Where the pass needs fewer, empty items and zeros fill them up, so that passes of
            one size can have tables of one size.

    Depends on the pass alone: make it before the layers run. See gram_fast::leaf_items in csrc/tables/leaf_items.h.
    """
    _check_tables_and_rows(spans_N2, range_offsets, ranges_R2, leaf_rows_L, _MAX_SLOTS)
    tables = (spans_N2.numpy(), range_offsets.numpy(), ranges_R2.numpy(), leaf_rows_L.numpy())
    return uploaded(torch.from_numpy(filled_up(_C.leaf_items(*tables, at_least[0]), at_least[1])), device)


def _check_items(items: Tensor, q_LHE: Tensor) -> None:
    expect(items.dim() == 2, "items", "2 dimensions", items.dim())
    expect_like(items, "items", tuple(items.shape), (torch.int32,), q_LHE.device)
    # Every leaf has one entry or more.
    is_table = items.is_contiguous() and len(items) > 0
    is_table = is_table and items.numel() >= leaf_table_size(len(items), len(q_LHE), len(q_LHE))
    expect(is_table, "items", f"the table that leaf_items makes for {len(q_LHE)} leaves", tuple(items.shape))


def _check_states(q_LHE: Tensor, k_SKE: Tensor, v_SKE: Tensor) -> None:
    expect_states("q_LHE", q_LHE, k_SKE, v_SKE)
    expect(q_LHE.shape[2] <= 256, "q_LHE", "a head width of at most 256", q_LHE.shape[2])
    expect(len(k_SKE) <= _MAX_SLOTS, "k_SKE", f"at most {_MAX_SLOTS} slots", len(k_SKE))


def _check_tables_and_rows(
    spans_N2: Tensor, range_offsets: Tensor, ranges_R2: Tensor, leaf_rows_L: Tensor, num_slots: int
) -> int:
    """Raises ValueError on a wrong table -> T, where the last span ends."""
    num_tokens = int(spans_N2[-1, -1]) if spans_N2.dim() == 2 and spans_N2.numel() else 0
    check_tables(spans_N2, range_offsets, ranges_R2, num_tokens, num_slots)
    expect(leaf_rows_L.dim() == 1, "leaf_rows_L", "1 dimension", leaf_rows_L.dim())
    expect_like(leaf_rows_L, "leaf_rows_L", (len(leaf_rows_L),), (torch.int64,), torch.device("cpu"))
    if len(leaf_rows_L):
        rows = leaf_rows_L.numpy()
        low, high = int(rows.min()), int(rows.max())
        expect(low >= 0 and high < num_tokens, "leaf_rows_L", f"rows from 0 to {num_tokens - 1}", f"{low} to {high}")
    return num_tokens
