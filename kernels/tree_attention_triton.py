"""Triton kernel of `tree_attention`: one launch; a tile of queries reads its ranges and then its own span.

No partial result goes through memory. The rows of a tile are tokens times the query heads of one key/value head: where
four heads share their keys, a node of 32 tokens fills a tile of 128 rows, and each key is loaded once for all of them.
Only the tile's own keys, which come last, need a mask. Online softmax as in FlashAttention-2 (arXiv 2307.08691), in
base 2.

Shape letters: T packed tokens of the pass, S key/value slots, H query heads, K key/value heads, E head width, M rows of
a tile, N keys of a block.
"""

# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs
import torch
import triton
import triton.language as tl
from torch import Tensor

from gram_fast.kernels.compilation import TYPES, Compilation, LaunchShape
from gram_fast.kernels.tables import EXTENT_COLUMNS, TILE_COLUMNS, TILE_ROWS, tile_table_parts

# Precision of float32 products: three tf32 products, which have the accuracy of float32 on tensor cores. "ieee" spilled
# kilobytes of registers at every block size tried. It does not affect 16-bit types.
PRECISION = "tf32x3"

# Maximum before the first key. Finite, since a row whose first block is masked entirely would compute inf - inf.
_NOTHING = tl.constexpr(-3.0e38)
_TILE_COLUMNS = tl.constexpr(TILE_COLUMNS)
_EXTENT_COLUMNS = tl.constexpr(EXTENT_COLUMNS)


@triton.jit
def _attend(
    acc_ME, peak_M, total_M, q_ME, k, v, k_offsets_NE, v_offsets_NE, is_column_E, is_key_N, is_visible_MN, scale_log2,
    MASKED: tl.constexpr, PADDED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds a block of keys to the sums. `k` and `v` point at its first slot; the masks are used if MASKED."""
    if MASKED:
        is_loaded_NE = is_key_N[:, None] & is_column_E[None, :]
        k_NE = tl.load(k + k_offsets_NE, mask=is_loaded_NE, other=0.0)
    elif PADDED:
        k_NE = tl.load(k + k_offsets_NE, mask=is_column_E[None, :], other=0.0)
    else:
        k_NE = tl.load(k + k_offsets_NE)
    scores_MN = tl.dot(q_ME, tl.trans(k_NE), input_precision=PRECISION)
    if MASKED:
        scores_MN = tl.where(is_visible_MN, scores_MN, float("-inf"))
    new_peak_M = tl.maximum(peak_M, tl.max(scores_MN, axis=1) * scale_log2)
    weights_MN = tl.exp2(scores_MN * scale_log2 - new_peak_M[:, None])
    shrink_M = tl.exp2(peak_M - new_peak_M)
    total_M = total_M * shrink_M + tl.sum(weights_MN, axis=1)
    acc_ME = acc_ME * shrink_M[:, None]
    # Slots that are not read may hold NaN, and 0 * NaN is NaN: they are not loaded.
    if MASKED:
        v_NE = tl.load(v + v_offsets_NE, mask=is_loaded_NE, other=0.0)
    elif PADDED:
        v_NE = tl.load(v + v_offsets_NE, mask=is_column_E[None, :], other=0.0)
    else:
        v_NE = tl.load(v + v_offsets_NE)
    acc_ME = tl.dot(weights_MN.to(v_NE.dtype), v_NE, acc_ME, input_precision=PRECISION)
    return acc_ME, new_peak_M, total_M


# The parts of the table are aligned differently in each pass. Specialised on that, four variants would be compiled,
# each during the request that first needs it.
@triton.jit(do_not_specialize_on_alignment=["ranges", "span_starts"])
def _tree_attention_kernel(
    q, k, v, out, tiles, span_starts, ranges,
    q_stride_t, q_stride_h, k_stride_h, v_stride_h, out_stride_t, out_stride_h,
    num_kv_heads, scale_log2,
    K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr, GROUP: tl.constexpr, TILE_TOKENS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per part of a tile and key/value head. Tables: attention_tiles (csrc/tables/attention_tables.h)."""
    PART_TOKENS: tl.constexpr = BLOCK_M // GROUP
    PARTS: tl.constexpr = (TILE_TOKENS + PART_TOKENS - 1) // PART_TOKENS
    PADDED: tl.constexpr = WIDTH != BLOCK_E
    program = tl.program_id(0)
    kv_head = (program % num_kv_heads).to(tl.int64)
    part = program // num_kv_heads % PARTS
    tile = tiles + _TILE_COLUMNS * (program // (num_kv_heads * PARTS))
    tile_first = tl.load(tile)
    first = tile_first + part * PART_TOKENS
    end = tl.minimum(tl.load(tile + 1), first + PART_TOKENS)
    if first >= end:
        return
    own_start, range_begin, range_end = tl.load(tile + 2), tl.load(tile + 3), tl.load(tile + 4)

    rows_M = tl.arange(0, BLOCK_M)
    # Rows past the end repeat the last token and are not stored.
    token_M = tl.minimum(first + rows_M // GROUP, end - 1)
    head_M = kv_head * GROUP + rows_M % GROUP
    columns_E = tl.arange(0, BLOCK_E)
    is_column_E = columns_E < WIDTH
    q_offsets_ME = (token_M.to(tl.int64) * q_stride_t + head_M * q_stride_h)[:, None] + columns_E[None, :]
    q_ME = tl.load(q + q_offsets_ME, mask=is_column_E[None, :], other=0.0)
    span_start_M = tl.load(span_starts + token_M)

    keys_N = tl.arange(0, BLOCK_N)
    k_offsets_NE = keys_N[:, None] * K_STRIDE + columns_E[None, :]
    v_offsets_NE = keys_N[:, None] * V_STRIDE + columns_E[None, :]
    k += kv_head * k_stride_h
    v += kv_head * v_stride_h
    acc_ME = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
    peak_M = tl.full([BLOCK_M], _NOTHING, tl.float32)
    total_M = tl.zeros([BLOCK_M], tl.float32)

    # The last round of this loop is the tile's own span before the tile.
    for index in range(range_begin, range_end + 1):
        is_range = index < range_end
        start = tl.load(ranges + _EXTENT_COLUMNS * index, mask=is_range, other=own_start)
        stop = tl.load(ranges + _EXTENT_COLUMNS * index + 1, mask=is_range, other=tile_first)
        whole = start + (stop - start) // BLOCK_N * BLOCK_N
        k_block, v_block = k + start.to(tl.int64) * K_STRIDE, v + start.to(tl.int64) * V_STRIDE
        for _ in range(start, whole, BLOCK_N):
            acc_ME, peak_M, total_M = _attend(
                acc_ME, peak_M, total_M, q_ME, k_block, v_block, k_offsets_NE, v_offsets_NE,
                is_column_E, is_column_E, is_column_E, scale_log2, False, PADDED, PRECISION,
            )  # fmt: skip
            k_block += BLOCK_N * K_STRIDE
            v_block += BLOCK_N * V_STRIDE
        if whole < stop:
            is_key_N = whole + keys_N < stop
            acc_ME, peak_M, total_M = _attend(
                acc_ME, peak_M, total_M, q_ME, k_block, v_block, k_offsets_NE, v_offsets_NE,
                is_column_E, is_key_N, is_key_N[None, :], scale_log2, True, PADDED, PRECISION,
            )  # fmt: skip
    k_block, v_block = k + tile_first.to(tl.int64) * K_STRIDE, v + tile_first.to(tl.int64) * V_STRIDE
    for block in range(tile_first, end, BLOCK_N):
        key_N = block + keys_N
        is_visible_MN = (key_N[None, :] <= token_M[:, None]) & (key_N[None, :] >= span_start_M[:, None])
        acc_ME, peak_M, total_M = _attend(
            acc_ME, peak_M, total_M, q_ME, k_block, v_block, k_offsets_NE, v_offsets_NE,
            is_column_E, key_N < end, is_visible_MN, scale_log2, True, PADDED, PRECISION,
        )  # fmt: skip
        k_block += BLOCK_N * K_STRIDE
        v_block += BLOCK_N * V_STRIDE

    out_offsets_ME = (token_M.to(tl.int64) * out_stride_t + head_M * out_stride_h)[:, None] + columns_E[None, :]
    is_stored_M = (rows_M < PART_TOKENS * GROUP) & (first + rows_M // GROUP < end)
    tl.store(
        out + out_offsets_ME,
        (acc_ME / total_M[:, None]).to(out.dtype.element_ty),
        mask=is_stored_M[:, None] & is_column_E[None, :],
    )


def launch_shape(width: int, itemsize: int, group: int, num_programs: int, capability: int) -> LaunchShape:
    """Block sizes for heads of `width` columns and elements of `itemsize` bytes. Not yet timed on a GPU.

    The largest of those tried that fit into shared memory and spill no register on the major compute `capability`
    (docs/performance.md has the table; float32 at width 256 spills at every size). `num_programs`: tiles times
    key/value heads.
    """
    is_hopper = capability == 9
    if itemsize == 4:
        shape = LaunchShape(32, 32, 4, 2) if width <= 64 else LaunchShape(16, 16, 4, 2)
    elif width > 128:
        shape = LaunchShape(64, 32 if capability == 8 else 16, 8, 2)
    else:
        shape = LaunchShape(128, 64 if is_hopper or width <= 64 else 32, 8, 3)
        # Too few tiles to fill the chip once: halve them.
        if num_programs < 132:
            shape = LaunchShape(64, shape.block_n, 4, 3)
    return LaunchShape(
        max(shape.block_m, triton.next_power_of_2(group)), shape.block_n, shape.num_warps, shape.num_stages
    )


def tree_attention_triton(
    q_THE: Tensor, k_SKE: Tensor, v_SKE: Tensor, tiles: Tensor, scale: float, shape: LaunchShape | None = None
) -> Tensor:
    """`tree_attention` from a table of gram_fast::attention_tiles with TILE_ROWS // (H // K) tokens per tile.

    `tiles`: int32 on the device of q_THE, one row per tile. `shape`: block sizes, to time others than those of
    `launch_shape`.
    """
    num_tokens, num_heads, width = q_THE.shape
    num_kv_heads = k_SKE.shape[1]
    group = num_heads // num_kv_heads
    tile_tokens = TILE_ROWS // group
    # The interpreter takes what Hopper takes.
    capability = torch.cuda.get_device_capability(q_THE.device)[0] if q_THE.is_cuda else 9
    # By the number of full tiles, since a table may hold empty ones.
    num_programs = triton.cdiv(num_tokens, tile_tokens) * num_kv_heads
    shape = shape or launch_shape(width, q_THE.element_size(), group, num_programs, capability)
    parts = triton.cdiv(tile_tokens, shape.block_m // group)
    out_THE = torch.empty((num_tokens, num_heads, width), dtype=q_THE.dtype, device=q_THE.device)
    parts_of_table = tile_table_parts(tiles, num_tokens)
    _tree_attention_kernel[(len(tiles) * parts * num_kv_heads,)](
        q_THE, k_SKE, v_SKE, out_THE, *parts_of_table,
        *q_THE.stride()[:2], k_SKE.stride(1), v_SKE.stride(1), *out_THE.stride()[:2],
        num_kv_heads, scale * 1.4426950408889634,
        K_STRIDE=k_SKE.stride(0), V_STRIDE=v_SKE.stride(0), GROUP=group, TILE_TOKENS=tile_tokens, WIDTH=width,
        BLOCK_M=shape.block_m, BLOCK_N=shape.block_n, BLOCK_E=max(16, triton.next_power_of_2(width)),
        PRECISION=PRECISION, num_warps=shape.num_warps, num_stages=shape.num_stages,
    )  # fmt: skip
    return out_THE


def compilations() -> list[Compilation]:
    """Every launch shape by dtype and head width, for groups of four heads and, at width 128, of other sizes."""
    cases = [("bfloat16", width, 4, programs) for width in (64, 96, 128) for programs in (1024, 64)]
    cases += [("bfloat16", 256, 4, 1024), ("float16", 128, 4, 1024)]
    cases += [("bfloat16", 128, group, 1024) for group in (1, 2, 7, 8)]
    cases += [("float32", width, 4, 1024) for width in (64, 128, 256)]
    return [_compilation(*case, capability) for case in cases for capability in (8, 9, 10)]


def _compilation(dtype: str, width: int, group: int, num_programs: int, capability: int) -> Compilation:
    shape = launch_shape(width, 4 if dtype == "float32" else 2, group, num_programs, capability)
    kind = TYPES[dtype]
    strides = ("q_stride_t", "q_stride_h", "k_stride_h", "v_stride_h", "out_stride_t", "out_stride_h")
    signature = {
        **dict.fromkeys(("q", "k", "v", "out"), f"*{kind}"),
        **dict.fromkeys(("tiles", "span_starts", "ranges"), "*i32"),
        **dict.fromkeys((*strides, "num_kv_heads"), "i32"),
        "scale_log2": "fp32",
    }
    constants = {
        "K_STRIDE": 8 * width, "V_STRIDE": 8 * width, "GROUP": group, "TILE_TOKENS": TILE_ROWS // group, "WIDTH": width,
        "BLOCK_M": shape.block_m, "BLOCK_N": shape.block_n, "BLOCK_E": triton.next_power_of_2(width),
        "PRECISION": PRECISION,
    }  # fmt: skip
    return Compilation(
        name=f"tree_attention {kind} E={width} G={group} M={shape.block_m} N={shape.block_n}",
        kernel=_tree_attention_kernel,
        signature=signature,
        constants=constants,
        num_warps=shape.num_warps,
        num_stages=shape.num_stages,
        capabilities=(10 * capability,),
        may_spill=kind == "fp32" and width > 128,
    )
