"""`leaf_attention`: attention of the last token of each leaf. The last layer needs no other.

Shape letters: L leaves, T packed tokens of the pass, S key/value slots, H query heads, K key/value heads, E head width,
N spans, R key ranges, X items, P partial results.
"""

from typing import Protocol

import torch
from torch import Tensor

from gram_fast.extension import _C
from gram_fast.kernels.leaf_attention import leaf_attention_reference
from gram_fast.kernels.tables import leaf_table_parts
from gram_fast.ops.backends import MAX_HEAD_DIM, Backends, check_backend
from gram_fast.ops.checks import DTYPES, as_float32, check_scores, check_states, expect, on_device_of, stream_of
from gram_fast.ops.tables import MAX_SLOTS, LeafTables, Spans, Window, check_leaf_rows

BACKENDS = Backends(("reference", "extension", "triton"), narrow=("extension", "triton"))


class AttendLeaves(Protocol):
    """The bound function of `leaf_attention`."""

    def __call__(
        self,
        q_LHE: Tensor,
        k_SKE: Tensor,
        v_SKE: Tensor,
        tables: LeafTables,
        scale: float,
        sinks_H: Tensor | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """Computes attention [L, H, E], contiguous, of what `tables` say; `sinks_H` and `softcap` as of the op."""
        ...


def implementation(backend: str) -> AttendLeaves:
    """The function that runs `leaf_attention` on a backend. It trusts its arguments and tables made for it."""
    return {"reference": _reference, "extension": _extension, "triton": _triton}[backend]


def _reference(
    q_LHE: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    tables: LeafTables,
    scale: float,
    sinks_H: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    size, is_chunked = tables.window or (None, False)
    spans = (*tables.spans, tables.leaf_rows_L)
    out_LHE = leaf_attention_reference(q_LHE, k_SKE, v_SKE, *spans, scale, size, is_chunked, sinks_H, softcap)
    return out_LHE.contiguous()


def _extension(
    q_LHE: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    tables: LeafTables,
    scale: float,
    sinks_H: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    out_LHE = q_LHE.new_empty(q_LHE.shape)
    if not len(q_LHE):
        return out_LHE
    items = _items_of(tables)
    _, _, entries = leaf_table_parts(items, len(q_LHE))
    partial_out_PHE, partial_lse_PH = _partial_results(entries, q_LHE)
    (num_leaves, num_heads, width), num_kv_heads = q_LHE.shape, k_SKE.shape[1]
    sinks_H = as_float32(sinks_H)
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
        None if sinks_H is None else sinks_H.data_ptr(),
        softcap,
    )
    return out_LHE


def _triton(
    q_LHE: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    tables: LeafTables,
    scale: float,
    sinks_H: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    from gram_fast.kernels.leaf_attention_triton import leaf_attention_triton

    if not len(q_LHE):
        return q_LHE.new_empty(q_LHE.shape)
    parts = leaf_table_parts(_items_of(tables), len(q_LHE))
    partial_results = _partial_results(parts[-1], q_LHE)
    return leaf_attention_triton(q_LHE, k_SKE, v_SKE, *parts, *partial_results, scale, sinks_H, softcap)


def _items_of(tables: LeafTables) -> Tensor:
    assert tables.items is not None
    return tables.items


def _partial_results(entries: Tensor, q_LHE: Tensor) -> tuple[Tensor, Tensor]:
    """Uninitialised float32 results [P, H, E] and log-sum-exps [P, H], one for each entry of the table."""
    partial_out_PHE = torch.empty((len(entries), *q_LHE.shape[1:]), dtype=torch.float32, device=q_LHE.device)
    return partial_out_PHE, partial_out_PHE.new_empty(partial_out_PHE.shape[:2])


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
    window: int | None = None,
    is_chunked: bool = False,
    sinks_H: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Computes attention of the last token of each leaf over its path -> [L, H, E], contiguous, dtype as q_LHE.

    A leaf whose last token is packed row t of a span reads slots [span start, t] and the slots of the span's ranges:
    the result is row t of `tree_attention`. Leaves that share keys and values read them once.

    Args:
        q_LHE: queries [L, H, E], float32, float16 or bfloat16, E at most 256.
        k_SKE, v_SKE: keys and values [S, K, E], S >= T; slots [0, T) belong to the packed tokens. H is a multiple of K.
        spans_N2: int64 [N, 2] on the CPU: start, end; they cover [0, T) in order.
        range_offsets: int64 [N + 1] on the CPU: rows of `ranges_R2` that each span reads.
        ranges_R2: int64 [R, 2] on the CPU: slots [start, end), 0 <= start < end <= S. Ranges of one span are disjoint.
        leaf_rows_L: int64 [L] on the CPU, 0 <= row < T.
        scale: factor on the scores, above 0, usually E ** -0.5.
        backend: one of BACKENDS["leaf_attention"] (see resolve_backend for "auto").
        window, is_chunked, sinks_H, softcap: as of `tree_attention`.

    Tables for the backend are made in every call; `bind` takes one `LeafTables` for all layers of a pass. Raises
    ValueError on a wrong shape, dtype, stride, device or an index out of range, BackendError on a backend that cannot
    run.
    """
    sizes = check_states("q_LHE", q_LHE, k_SKE, v_SKE)
    num_slots, num_leaves = sizes["S"], sizes["L"]
    expect(sizes["E"] <= MAX_HEAD_DIM, "q_LHE", f"a head width of at most {MAX_HEAD_DIM}", sizes["E"])
    expect(num_slots <= MAX_SLOTS, "k_SKE", f"at most {MAX_SLOTS} slots", num_slots)
    spans = Spans(spans_N2, range_offsets, ranges_R2).check(num_slots)
    check_leaf_rows(leaf_rows_L, spans.num_tokens)
    expect(num_slots >= spans.num_tokens, "k_SKE", f"at least T = {spans.num_tokens} slots", num_slots)
    expect(len(leaf_rows_L) == num_leaves, "leaf_rows_L", f"L = {num_leaves} rows", len(leaf_rows_L))
    expect(scale > 0, "scale", "a positive number", scale)
    windows = Window.of(window, is_chunked)
    check_scores(sizes, q_LHE.dtype, sinks_H, softcap)
    check_backend("leaf_attention", backend, q_LHE.device, q_LHE.dtype)
    if q_LHE.numel() == 0:
        return q_LHE.new_empty(q_LHE.shape)
    tables = LeafTables.of(spans, leaf_rows_L, backend, q_LHE.device, window=windows)
    with on_device_of(q_LHE):
        return implementation(backend)(q_LHE, k_SKE, v_SKE, tables, scale, sinks_H, softcap)


@leaf_attention.register_fake
def _(q_LHE: Tensor, *_: object, **__: object) -> Tensor:
    return q_LHE.new_empty(q_LHE.shape)
