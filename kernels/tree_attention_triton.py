"""Triton kernel of `tree_attention`: one launch; a tile of queries reads its ranges and then its own span.

No partial result goes through memory. The rows of a tile are tokens times the query heads of one key/value head: where
four heads share their keys, a node of 32 tokens fills a tile of 128 rows, and each key is loaded once for all of them.
Online softmax as in FlashAttention-2 (arXiv 2307.08691), in base 2.

There are two loops, and each runs at least once: over the blocks of keys that precede the tile, whatever range they are
of, and over the tile's own keys. With a loop for each range, and one more block where a range ends, ptxas could not
keep the sums in the registers of asynchronous products and waited for each of them (its warning C7515): 36 waits of 36
products on sm_90, now 4 for 4 products of blocks. gram_fast.kernels.offline holds that.

From sm_90 on, keys and values are loaded through tensor descriptors, a block by one instruction of one thread. They
bring whole blocks: slots behind a range are loaded too, and get weights of zero. So every slot must be finite
(KeyValueStore starts with zeros). On sm_80, and where an address or a stride is no multiple of 16 bytes, every thread
loads for itself, and only what is read.

Windows, sinks and soft caps are arguments that are None where there are none: then nothing of them is compiled.

Shape letters: T packed tokens of the pass, S key/value slots, H query heads, K key/value heads, E head width, M rows of
a tile, N keys of a block.
"""

# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from gram_fast.kernels.compilation import TYPES, Compilation, LaunchShape
from gram_fast.kernels.softmax import capped_scores, scales, with_sinks
from gram_fast.kernels.tables import (
    EXTENT_COLUMNS,
    TILE_COLUMNS,
    TILE_ROWS,
    tile_table_parts,
    windowed_tile_table_parts,
)

# Precision of float32 products: three tf32 products, which have the accuracy of float32 on tensor cores. "ieee" spilled
# kilobytes of registers at every block size tried. It does not affect 16-bit types.
PRECISION = "tf32x3"

OTHER_SHAPES = (LaunchShape(128, 128, 8, 2), LaunchShape(64, 64, 4, 2))
"""Block sizes to time against the two of `launch_shape`, for heads of 128 columns in 16 bits on sm_90.

The first makes half the rounds; of the second, two programs share a multiprocessor (81 KiB, 190 registers each).
"""

# Maximum before the first key. Finite, since a row whose first block is masked entirely would compute inf - inf.
_NOTHING = tl.constexpr(-3.0e38)
_TILE_COLUMNS = tl.constexpr(TILE_COLUMNS)
_EXTENT_COLUMNS = tl.constexpr(EXTENT_COLUMNS)


@triton.jit
def _load(
    states, slot, kv_head, offsets_NE, is_key_N, is_column_E,
    STRIDE: tl.constexpr, PADDED: tl.constexpr, DESCRIBED: tl.constexpr,
):  # fmt: skip
    """A block [N, E] of keys or values from `slot` on: those in `is_key_N`, or, where a descriptor loads, all."""
    if DESCRIBED:
        block_NE = states.load([slot, kv_head, 0]).reshape([states.block_shape[0], states.block_shape[2]])
    else:
        is_loaded_NE = is_key_N[:, None]
        if PADDED:
            is_loaded_NE = is_loaded_NE & is_column_E[None, :]
        stride = tl.full([], STRIDE, tl.int64)  # times a slot, beyond 32 bits
        block_NE = tl.load(states + slot * stride + offsets_NE, mask=is_loaded_NE, other=0.0)
    return block_NE


@triton.jit
def _attend(
    acc_ME, peak_M, total_M, q_ME, k, v, slot, kv_head, k_offsets_NE, v_offsets_NE, is_key_N, is_column_E,
    is_visible_MN, scale_log2, inner_scale,
    K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr, PADDED: tl.constexpr, DESCRIBED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds the block of keys from `slot` on to the sums."""
    k_NE = _load(k, slot, kv_head, k_offsets_NE, is_key_N, is_column_E, K_STRIDE, PADDED, DESCRIBED)
    scores_MN = tl.dot(q_ME, tl.trans(k_NE), input_precision=PRECISION)
    if inner_scale is not None:
        scores_MN = capped_scores(scores_MN, inner_scale)
    # A bias that is added instead makes ptxas wait for every product again.
    scores_MN = tl.where(is_visible_MN, scores_MN, float("-inf"))
    new_peak_M = tl.maximum(peak_M, tl.max(scores_MN, axis=1) * scale_log2)
    weights_MN = tl.exp2(scores_MN * scale_log2 - new_peak_M[:, None])
    shrink_M = tl.exp2(peak_M - new_peak_M)
    total_M = total_M * shrink_M + tl.sum(weights_MN, axis=1)
    v_NE = _load(v, slot, kv_head, v_offsets_NE, is_key_N, is_column_E, V_STRIDE, PADDED, DESCRIBED)
    acc_ME = tl.dot(weights_MN.to(v_NE.dtype), v_NE, acc_ME * shrink_M[:, None], input_precision=PRECISION)
    return acc_ME, new_peak_M, total_M


@triton.jit
def _extent(ranges, index, end, own_start, own_end):
    """Slots [start, stop) of range `index` of a tile; behind the last, its own span before it: [own_start, own_end)."""
    row = ranges + _EXTENT_COLUMNS * index
    is_range = index < end
    return tl.load(row, mask=is_range, other=own_start), tl.load(row + 1, mask=is_range, other=own_end)


# The parts of the table are aligned differently in each pass. Specialised on that, four variants would be compiled,
# each during the request that first needs it.
@triton.jit(do_not_specialize_on_alignment=["ranges", "span_starts", "skips", "starts", "sinks"])
def _tree_attention_kernel(
    q, k, v, out, tiles, span_starts, ranges, skips, starts, sinks,
    q_stride_t, q_stride_h, k_stride_h, v_stride_h, out_stride_t, out_stride_h,
    num_kv_heads, scale_log2, inner_scale,
    K_STRIDE: tl.constexpr, V_STRIDE: tl.constexpr, GROUP: tl.constexpr, TILE_TOKENS: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr, DESCRIBED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per part of a tile and key/value head. Tables: attention_tiles (csrc/tables/attention_tables.h).

    `k` and `v`: tensor descriptors of blocks [BLOCK_N, 1, BLOCK_E] if DESCRIBED, otherwise pointers. `skips` and
    `starts`: of a table with a window, or None. `sinks` or None. `inner_scale`: of soft caps, or None (`scales`).
    """
    PART_TOKENS: tl.constexpr = BLOCK_M // GROUP
    PARTS: tl.constexpr = (TILE_TOKENS + PART_TOKENS - 1) // PART_TOKENS
    PADDED: tl.constexpr = WIDTH != BLOCK_E
    program = tl.program_id(0)
    kv_head = program % num_kv_heads
    part = program // num_kv_heads % PARTS
    tile_index = program // (num_kv_heads * PARTS)
    tile = tiles + _TILE_COLUMNS * tile_index
    tile_first = tl.load(tile)
    first = tile_first + part * PART_TOKENS
    end = tl.minimum(tl.load(tile + 1), first + PART_TOKENS)
    if first >= end:
        return
    own_start, range_begin, range_end = tl.load(tile + 2), tl.load(tile + 3), tl.load(tile + 4)
    num_blocks = tl.cdiv(tile_first - own_start, BLOCK_N)
    if starts is not None:
        walk_start = tl.load(starts + tile_index)
    for index in range(range_begin, range_end):
        start, stop = _extent(ranges, index, range_end, own_start, tile_first)
        if starts is not None:
            start = tl.where(index == range_begin, walk_start, start)
        num_blocks += tl.cdiv(stop - start, BLOCK_N)

    rows_M = tl.arange(0, BLOCK_M)
    # Rows past the end repeat the last token and are not stored.
    token_M = tl.minimum(first + rows_M // GROUP, end - 1)
    head_M = kv_head.to(tl.int64) * GROUP + rows_M % GROUP
    columns_E = tl.arange(0, BLOCK_E)
    is_column_E = columns_E < WIDTH
    q_offsets_ME = (token_M.to(tl.int64) * q_stride_t + head_M * q_stride_h)[:, None] + columns_E[None, :]
    q_ME = tl.load(q + q_offsets_ME, mask=is_column_E[None, :], other=0.0)
    span_start_M = tl.load(span_starts + token_M)
    if skips is not None:
        skip_M = tl.load(skips + token_M)
        walked = 0

    keys_N = tl.arange(0, BLOCK_N)
    k_offsets_NE = keys_N[:, None] * K_STRIDE + columns_E[None, :]
    v_offsets_NE = keys_N[:, None] * V_STRIDE + columns_E[None, :]
    if not DESCRIBED:
        k += kv_head.to(tl.int64) * k_stride_h
        v += kv_head.to(tl.int64) * v_stride_h
    acc_ME = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
    peak_M = tl.full([BLOCK_M], _NOTHING, tl.float32)
    total_M = tl.zeros([BLOCK_M], tl.float32)

    slot, stop = _extent(ranges, range_begin, range_end, own_start, tile_first)
    if starts is not None:
        slot = walk_start
    index = range_begin + 1
    # Known a block ahead, so that no load of keys waits for its own address.
    next_slot, next_stop = _extent(ranges, index, range_end, own_start, tile_first)
    # A tile without any such block takes one that is masked entirely.
    for _ in range(0, tl.maximum(num_blocks, 1)):
        is_key_N = slot + keys_N < stop
        is_visible_MN = is_key_N[None, :]
        if skips is not None:
            is_visible_MN = is_visible_MN & ((walked + keys_N)[None, :] >= skip_M[:, None])
            walked += tl.minimum(stop - slot, BLOCK_N)
        acc_ME, peak_M, total_M = _attend(
            acc_ME, peak_M, total_M, q_ME, k, v, slot, kv_head, k_offsets_NE, v_offsets_NE, is_key_N, is_column_E,
            is_visible_MN, scale_log2, inner_scale, K_STRIDE, V_STRIDE, PADDED, DESCRIBED, PRECISION,
        )  # fmt: skip
        slot += BLOCK_N
        is_read = slot >= stop
        slot, stop = tl.where(is_read, next_slot, slot), tl.where(is_read, next_stop, stop)
        index += is_read.to(tl.int32)
        next_slot, next_stop = _extent(ranges, index, range_end, own_start, tile_first)
    tl.assume(tile_first < end)
    for block in range(tile_first, end, BLOCK_N):
        key_N = block + keys_N
        is_visible_MN = (key_N[None, :] <= token_M[:, None]) & (key_N[None, :] >= span_start_M[:, None])
        acc_ME, peak_M, total_M = _attend(
            acc_ME, peak_M, total_M, q_ME, k, v, block, kv_head, k_offsets_NE, v_offsets_NE, key_N < end, is_column_E,
            is_visible_MN, scale_log2, inner_scale, K_STRIDE, V_STRIDE, PADDED, DESCRIBED, PRECISION,
        )  # fmt: skip

    if sinks is not None:
        shrink_M, total_M = with_sinks(peak_M, total_M, tl.load(sinks + head_M))
        acc_ME *= shrink_M[:, None]
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
    (docs/performance.md has the table; float32 at width 256 spills at every size). A block of 128 keys fits too where
    heads have 128 columns, with two stages; it reads more slots behind the ends of ranges. `num_programs`: tiles times
    key/value heads.
    """
    is_ampere = capability == 8
    if itemsize == 4:
        shape = LaunchShape(32 if width <= 64 else 16, 32 if width <= 128 else 16, 4, 2)
    elif width > 128:
        shapes = {8: LaunchShape(64, 32, 8, 2), 9: LaunchShape(128, 64, 8, 2)}
        shape = shapes.get(capability, LaunchShape(128, 32, 8, 2))
    else:
        shape = LaunchShape(128, 32 if is_ampere and width > 64 else 64, 8, 3)
        # Too few tiles to fill the chip once: halve them.
        if num_programs < 132:
            shape = LaunchShape(64, shape.block_n, 4, 3)
    return LaunchShape(
        max(shape.block_m, triton.next_power_of_2(group)), shape.block_n, shape.num_warps, shape.num_stages
    )


def tree_attention_triton(
    q_THE: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    tiles: Tensor,
    scale: float,
    shape: LaunchShape | None = None,
    is_windowed: bool = False,
    sinks_H: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """`tree_attention` from a table of gram_fast::attention_tiles with TILE_ROWS // (H // K) tokens per tile.

    Args:
        q_THE, k_SKE, v_SKE, scale, sinks_H, softcap: as of `tree_attention`. Every slot is finite, those that nobody
            reads too.
        tiles: int32 on the device of q_THE, one row per tile.
        shape: block sizes, to time others than those of `launch_shape`.
        is_windowed: whether the table is one with a window.
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
    block_e = max(16, triton.next_power_of_2(width))
    is_described = capability >= 9 and _may_be_described(k_SKE) and _may_be_described(v_SKE)
    block = [shape.block_n, 1, block_e]
    states = [TensorDescriptor.from_tensor(x, block) for x in (k_SKE, v_SKE)] if is_described else (k_SKE, v_SKE)
    out_THE = torch.empty((num_tokens, num_heads, width), dtype=q_THE.dtype, device=q_THE.device)
    parts_of_table: tuple[Tensor | None, ...] = (*tile_table_parts(tiles, num_tokens), None, None)
    if is_windowed:
        parts_of_table = windowed_tile_table_parts(tiles, num_tokens)
    _tree_attention_kernel[(len(tiles) * parts * num_kv_heads,)](
        q_THE, *states, out_THE, *parts_of_table, sinks_H,
        *q_THE.stride()[:2], k_SKE.stride(1), v_SKE.stride(1), *out_THE.stride()[:2],
        num_kv_heads, *scales(scale, softcap),
        K_STRIDE=k_SKE.stride(0), V_STRIDE=v_SKE.stride(0), GROUP=group, TILE_TOKENS=tile_tokens, WIDTH=width,
        BLOCK_M=shape.block_m, BLOCK_N=shape.block_n, BLOCK_E=block_e, DESCRIBED=is_described, PRECISION=PRECISION,
        num_warps=shape.num_warps, num_stages=shape.num_stages,
    )  # fmt: skip
    return out_THE


def _may_be_described(states_SKE: Tensor) -> bool:
    """Whether a tensor descriptor may describe it: address and strides are multiples of 16 bytes."""
    strides = (stride * states_SKE.element_size() for stride in states_SKE.stride()[:2])
    return states_SKE.data_ptr() % 16 == 0 and all(stride > 0 and stride % 16 == 0 for stride in strides)


def compilations() -> list[Compilation]:
    """Every launch shape by dtype and head width, for groups of four heads and, at width 128, of other sizes.

    With windows, sinks and soft caps, the widths of the models that have them.
    """
    cases = [("bfloat16", width, 4, programs) for width in (64, 96, 128) for programs in (1024, 64)]
    cases += [("bfloat16", 256, 4, 1024), ("float16", 128, 4, 1024)]
    cases += [("bfloat16", 128, group, 1024) for group in (1, 2, 7, 8)]
    cases += [("float32", width, 4, 1024) for width in (64, 128, 256)]
    made = [
        _compilation(dtype, width, group, launch_shape(width, 4 if dtype == "float32" else 2, group, *on), on[1])
        for dtype, width, group, programs in cases
        for on in ((programs, capability) for capability in (8, 9, 10))
    ]
    made += [
        _compilation("bfloat16", width, 4, launch_shape(width, 2, 4, 1024, capability), capability, options=options)
        for width in (64, 128, 256)
        for options in (("window", "sinks"), ("window", "soft cap"))
        for capability in (8, 9, 10)
    ]
    return made + [_compilation("bfloat16", 128, 4, shape, 9, " to time") for shape in OTHER_SHAPES]


def _compilation(
    dtype: str,
    width: int,
    group: int,
    shape: LaunchShape,
    capability: int,
    note: str = "",
    options: tuple[str, ...] = (),
) -> Compilation:
    kind = TYPES[dtype]
    block_e = triton.next_power_of_2(width)
    is_described = capability >= 9
    states = f"tensordesc<{kind}[{shape.block_n}, 1, {block_e}]>" if is_described else f"*{kind}"
    strides = ("q_stride_t", "q_stride_h", "k_stride_h", "v_stride_h", "out_stride_t", "out_stride_h")
    optional = {"skips": "window", "starts": "window", "sinks": "sinks", "inner_scale": "soft cap"}
    types = {"skips": "*i32", "starts": "*i32", "sinks": f"*{kind}", "inner_scale": "fp32"}
    signature = {
        "q": f"*{kind}",
        **dict.fromkeys(("k", "v"), states),
        "out": f"*{kind}",
        **dict.fromkeys(("tiles", "span_starts", "ranges"), "*i32"),
        **dict.fromkeys((*strides, "num_kv_heads"), "i32"),
        "scale_log2": "fp32",
        **{name: types[name] for name, option in optional.items() if option in options},
    }
    constants = {
        "K_STRIDE": 8 * width, "V_STRIDE": 8 * width, "GROUP": group, "TILE_TOKENS": TILE_ROWS // group, "WIDTH": width,
        "BLOCK_M": shape.block_m, "BLOCK_N": shape.block_n, "BLOCK_E": block_e, "DESCRIBED": is_described,
        "PRECISION": PRECISION, **{name: None for name, option in optional.items() if option not in options},
    }  # fmt: skip
    with_options = f" with {', '.join(options)}" if options else ""
    return Compilation(
        name=f"tree_attention {kind} E={width} G={group} M={shape.block_m} N={shape.block_n}{with_options}{note}",
        kernel=_tree_attention_kernel,
        signature=signature,
        constants=constants,
        num_warps=shape.num_warps,
        num_stages=shape.num_stages,
        capabilities=(10 * capability,),
        may_spill=kind == "fp32" and width > 128,
    )
