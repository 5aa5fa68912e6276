"""Triton kernels of `leaf_attention`: one launch for a partial result per entry, one to merge those of each leaf.

With one query per leaf, attention is bound by memory, so one program reads the keys of an item for all leaves that
share them. Its rows are their queries times the query heads of a key/value head, BLOCK_M at a time. The table is that
of gram_fast::leaf_items (csrc/tables/leaf_items.h), which knows of windows. Sinks and soft caps are arguments that are
None where there are none: then nothing of them is compiled.

Shape letters: L leaves, S key/value slots, H query heads, K key/value heads, E head width, P partial results, M rows of
a tile, N keys of a block.
"""

# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs
import torch
import triton
import triton.language as tl
from torch import Tensor

from gram_fast.kernels.compilation import TYPES, Compilation, LaunchShape
from gram_fast.kernels.softmax import capped_scores, scales
from gram_fast.kernels.tables import ENTRY_COLUMNS, ITEM_COLUMNS

# Maximum before the first key. Finite, since a row whose first block is masked entirely would compute inf - inf.
_NOTHING = tl.constexpr(-3.0e38)
_ITEM_COLUMNS = tl.constexpr(ITEM_COLUMNS)
_ENTRY_COLUMNS = tl.constexpr(ENTRY_COLUMNS)
_LOG_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _leaf_attention_kernel(
    q, k, v, partial_out, partial_lse, items, entries,
    q_stride_l, q_stride_h, k_stride_s, k_stride_h, v_stride_s, v_stride_h, num_kv_heads,
    scale_log2, inner_scale,
    GROUP: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """One program per item and key/value head: online softmax over its keys, in base 2, BLOCK_M rows at a time."""
    program = tl.program_id(0)
    kv_head = (program % num_kv_heads).to(tl.int64)
    item = items + _ITEM_COLUMNS * (program // num_kv_heads)
    start, end, first_entry, end_entry = tl.load(item), tl.load(item + 1), tl.load(item + 2), tl.load(item + 3)
    k += kv_head * k_stride_h + start.to(tl.int64) * k_stride_s
    v += kv_head * v_stride_h + start.to(tl.int64) * v_stride_s
    key_N = tl.arange(0, BLOCK_N)
    column_E = tl.arange(0, BLOCK_E)
    is_column_E = column_E < WIDTH
    k_offsets_NE = key_N[:, None].to(tl.int64) * k_stride_s + column_E[None, :]
    v_offsets_NE = key_N[:, None].to(tl.int64) * v_stride_s + column_E[None, :]

    block_n = tl.full([], BLOCK_N, tl.int64)  # times a stride, beyond 32 bits

    num_rows = (end_entry - first_entry) * GROUP
    for first_row in range(0, num_rows, BLOCK_M):
        row_M = first_row + tl.arange(0, BLOCK_M)
        is_row_M = row_M < num_rows
        is_row_ME = is_row_M[:, None] & is_column_E[None, :]
        entry_M = entries + _ENTRY_COLUMNS * (first_entry + row_M // GROUP)
        leaf_M = tl.load(entry_M, mask=is_row_M, other=0).to(tl.int64)
        start_M = tl.load(entry_M + 1, mask=is_row_M, other=0)
        end_M = tl.load(entry_M + 2, mask=is_row_M, other=0)
        head_M = kv_head * GROUP + row_M % GROUP
        q_offsets_ME = (leaf_M * q_stride_l + head_M * q_stride_h)[:, None] + column_E[None, :]
        q_ME = tl.load(q + q_offsets_ME, mask=is_row_ME, other=0.0)

        acc_ME = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
        peak_M = tl.full([BLOCK_M], _NOTHING, tl.float32)
        total_M = tl.zeros([BLOCK_M], tl.float32)
        k_block, v_block = k, v
        for first_key in range(start, end, BLOCK_N):
            slot_N = first_key + key_N
            # Slots behind the item may hold NaN, and 0 * NaN is NaN: they are not loaded.
            is_loaded_NE = (slot_N < end)[:, None]
            if WIDTH != BLOCK_E:
                is_loaded_NE = is_loaded_NE & is_column_E[None, :]
            k_NE = tl.load(k_block + k_offsets_NE, mask=is_loaded_NE, other=0.0)
            scores_MN = tl.dot(q_ME, tl.trans(k_NE), input_precision="ieee")
            if inner_scale is not None:
                scores_MN = capped_scores(scores_MN, inner_scale)
            scores_MN *= scale_log2
            is_read_MN = (slot_N[None, :] >= start_M[:, None]) & (slot_N[None, :] < end_M[:, None])
            scores_MN = tl.where(is_read_MN, scores_MN, float("-inf"))
            new_peak_M = tl.maximum(peak_M, tl.max(scores_MN, axis=1))
            weights_MN = tl.exp2(scores_MN - new_peak_M[:, None])
            shrink_M = tl.exp2(peak_M - new_peak_M)
            total_M = total_M * shrink_M + tl.sum(weights_MN, axis=1)
            v_NE = tl.load(v_block + v_offsets_NE, mask=is_loaded_NE, other=0.0)
            acc_ME = tl.dot(weights_MN.to(v_NE.dtype), v_NE, acc_ME * shrink_M[:, None], input_precision="ieee")
            peak_M = new_peak_M
            k_block += block_n * k_stride_s
            v_block += block_n * v_stride_s

        # Rows past the end have read nothing.
        total_M = tl.where(is_row_M, total_M, 1.0)
        partial_M = tl.load(entry_M + 3, mask=is_row_M, other=0).to(tl.int64) * (num_kv_heads * GROUP) + head_M
        out_offsets_ME = partial_M[:, None] * WIDTH + column_E[None, :]
        tl.store(partial_out + out_offsets_ME, acc_ME / total_M[:, None], mask=is_row_ME)
        tl.store(partial_lse + partial_M, (peak_M + tl.log2(total_M)) * _LOG_2, mask=is_row_M)


@triton.jit(do_not_specialize_on_alignment=["sinks"])
def _merge_kernel(
    out, partial_out, partial_lse, leaf_offsets, sinks, num_heads,
    WIDTH: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """One program per leaf and head: merges its partial results, BLOCK_P at a time."""
    program = tl.program_id(0).to(tl.int64)
    leaf, head = program // num_heads, program % num_heads
    begin, end = tl.load(leaf_offsets + leaf), tl.load(leaf_offsets + leaf + 1)
    column_E = tl.arange(0, BLOCK_E)
    is_column_E = column_E < WIDTH
    acc_E = tl.zeros([BLOCK_E], tl.float32)
    # A scalar tensor, since the loop carries it.
    peak = tl.full([], _NOTHING, tl.float32)
    total = tl.zeros([], tl.float32)
    if sinks is not None:
        peak = tl.load(sinks + head).to(tl.float32)
        total += 1
    for first in range(begin, end, BLOCK_P):
        partial_P = first + tl.arange(0, BLOCK_P)
        is_partial_P = partial_P < end
        row_P = partial_P.to(tl.int64) * num_heads + head
        lse_P = tl.load(partial_lse + row_P, mask=is_partial_P, other=float("-inf"))
        out_PE = tl.load(
            partial_out + row_P[:, None] * WIDTH + column_E[None, :],
            mask=is_partial_P[:, None] & is_column_E[None, :],
            other=0.0,
        )
        new_peak = tl.maximum(peak, tl.max(lse_P, axis=0))
        weight_P = tl.exp(lse_P - new_peak)
        shrink = tl.exp(peak - new_peak)
        total = total * shrink + tl.sum(weight_P, axis=0)
        acc_E = acc_E * shrink + tl.sum(weight_P[:, None] * out_PE, axis=0)
        peak = new_peak
    tl.store(out + program * WIDTH + column_E, (acc_E / total).to(out.dtype.element_ty), mask=is_column_E)


def launch_shape(width: int, itemsize: int) -> LaunchShape:
    """Block sizes for heads of `width` columns and elements of `itemsize` bytes. Not yet timed on a GPU.

    The largest of those tried that spill no register on sm_80, sm_90 and sm_100 (docs/performance.md has the table).
    Two programs of 128 threads and 255 registers share a multiprocessor and have two of three blocks each in flight: 64
    KiB. 3 TB/s at a latency of 0.8 us need 18 KiB in flight on each of 132 multiprocessors.
    """
    if itemsize == 4:
        return LaunchShape(32 if width <= 128 else 16, 16, 8, 1)
    return LaunchShape(32, 32 if width <= 128 else 16, 4, 3)


_MERGE_BLOCK = 8
_MERGE_WARPS = 1


def leaf_attention_triton(
    q_LHE: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    items: Tensor,
    leaf_offsets: Tensor,
    entries: Tensor,
    partial_out_PHE: Tensor,
    partial_lse_PH: Tensor,
    scale: float,
    sinks_H: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """`leaf_attention` from the three parts of a table of gram_fast::leaf_items, int32 on the device of q_LHE.

    `partial_out_PHE` and `partial_lse_PH` are uninitialised buffers, float32 and contiguous. The rest is as of the op.
    """
    num_leaves, num_heads, width = q_LHE.shape
    num_kv_heads = k_SKE.shape[1]
    shape = launch_shape(width, q_LHE.element_size())
    block_e = max(16, triton.next_power_of_2(width))
    out_LHE = torch.empty((num_leaves, num_heads, width), dtype=q_LHE.dtype, device=q_LHE.device)
    _leaf_attention_kernel[(len(items) * num_kv_heads,)](
        q_LHE, k_SKE, v_SKE, partial_out_PHE, partial_lse_PH, items, entries,
        *q_LHE.stride()[:2], *k_SKE.stride()[:2], *v_SKE.stride()[:2], num_kv_heads,
        *scales(scale, softcap),
        GROUP=num_heads // num_kv_heads, WIDTH=width, BLOCK_M=shape.block_m, BLOCK_N=shape.block_n, BLOCK_E=block_e,
        num_warps=shape.num_warps, num_stages=shape.num_stages,
    )  # fmt: skip
    _merge_kernel[(num_leaves * num_heads,)](
        out_LHE, partial_out_PHE, partial_lse_PH, leaf_offsets, sinks_H, num_heads,
        WIDTH=width, BLOCK_P=_MERGE_BLOCK, BLOCK_E=block_e, num_warps=_MERGE_WARPS, num_stages=1,
    )  # fmt: skip
    return out_LHE


def compilations() -> list[Compilation]:
    """Both launches by dtype and head width, for groups of four heads and, once, of seven, and some with options."""
    cases = [(dtype, width, 4) for dtype in ("bfloat16", "float32") for width in (64, 96, 128, 256)]
    cases += [("float16", 128, 4), ("bfloat16", 128, 7)]
    merges = [(dtype, width) for dtype, width, group in cases if group == 4]
    return [
        *(_attend_compilation(*case) for case in cases),
        *(_attend_compilation("bfloat16", width, 4, is_capped=True) for width in (64, 128, 256)),
        *(_merge_compilation(*case) for case in merges),
        *(_merge_compilation("bfloat16", width, has_sinks=True) for width in (64, 128, 256)),
    ]


def _attend_compilation(dtype: str, width: int, group: int, is_capped: bool = False) -> Compilation:
    shape = launch_shape(width, 4 if dtype == "float32" else 2)
    kind = TYPES[dtype]
    strides = ("q_stride_l", "q_stride_h", "k_stride_s", "k_stride_h", "v_stride_s", "v_stride_h")
    return Compilation(
        name=f"leaf_attention {kind} E={width} G={group} M={shape.block_m} N={shape.block_n}"
        + (" with soft cap" if is_capped else ""),
        kernel=_leaf_attention_kernel,
        signature={
            **dict.fromkeys(("q", "k", "v"), f"*{kind}"),
            **dict.fromkeys(("partial_out", "partial_lse"), "*fp32"),
            **dict.fromkeys(("items", "entries"), "*i32"),
            **dict.fromkeys((*strides, "num_kv_heads"), "i32"),
            **dict.fromkeys(("scale_log2", "inner_scale") if is_capped else ("scale_log2",), "fp32"),
        },
        constants={
            **({} if is_capped else {"inner_scale": None}),
            "GROUP": group,
            "WIDTH": width,
            "BLOCK_M": shape.block_m,
            "BLOCK_N": shape.block_n,
            "BLOCK_E": triton.next_power_of_2(width),
        },
        num_warps=shape.num_warps,
        num_stages=shape.num_stages,
    )


def _merge_compilation(dtype: str, width: int, has_sinks: bool = False) -> Compilation:
    kind = TYPES[dtype]
    return Compilation(
        name=f"leaf_attention merge {kind} E={width}" + (" with sinks" if has_sinks else ""),
        kernel=_merge_kernel,
        signature={
            "out": f"*{kind}",
            "partial_out": "*fp32",
            "partial_lse": "*fp32",
            "leaf_offsets": "*i32",
            "num_heads": "i32",
            **({"sinks": f"*{kind}"} if has_sinks else {}),
        },
        constants={
            **({} if has_sinks else {"sinks": None}),
            "WIDTH": width,
            "BLOCK_P": _MERGE_BLOCK,
            "BLOCK_E": triton.next_power_of_2(width),
        },
        num_warps=_MERGE_WARPS,
        num_stages=1,
    )
