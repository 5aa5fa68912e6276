"""Triton kernel of `path_attention`: one launch; a tile of queries reads its path in blocks counted from the root.

All tiles at one place of a path read the same number of blocks. A block that is masked for a row does not change the
row: its weights are 0 and the factor of the earlier sums is 1. So the bits of a row depend on its path alone. Online
softmax as in FlashAttention-2 (arXiv 2307.08691), in base 2.

Shape letters: T packed tokens, S key/value slots, H query heads, K key/value heads, E head width, X tiles, P slots of
all paths, M rows of a tile, N keys of a block.
"""

# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs
import torch
import triton
import triton.language as tl
from torch import Tensor

from gram_fast.kernels.compilation import TYPES, Compilation, LaunchShape
from gram_fast.kernels.tables import PATH_TILE_COLUMNS, path_tile_tokens
from gram_fast.kernels.tree_attention_triton import PRECISION

# Maximum before the first key. Finite, since a row whose first block is masked entirely would compute inf - inf.
_NOTHING = tl.constexpr(-3.0e38)
_TILE_COLUMNS = tl.constexpr(PATH_TILE_COLUMNS)


@triton.jit
def _path_attention_kernel(
    q, k, v, out, tiles, slots,
    q_stride_t, q_stride_h, k_stride_s, k_stride_h, v_stride_s, v_stride_h, out_stride_t, out_stride_h,
    num_kv_heads, scale_log2,
    GROUP: tl.constexpr, TILE_TOKENS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program per part of a tile and key/value head; rows are positions of the path times heads of the group."""
    PART_TOKENS: tl.constexpr = BLOCK_M // GROUP
    PARTS: tl.constexpr = (TILE_TOKENS + PART_TOKENS - 1) // PART_TOKENS
    program = tl.program_id(0)
    kv_head = (program % num_kv_heads).to(tl.int64)
    part = program // num_kv_heads % PARTS
    tile = tiles + _TILE_COLUMNS * (program // (num_kv_heads * PARTS))
    first, count, position, path = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2), tl.load(tile + 3)
    known = position + count
    # Positions of this part: [part_start, part_start + PART_TOKENS), of which the tile holds [position, known).
    part_start = position // TILE_TOKENS * TILE_TOKENS + part * PART_TOKENS
    if (part_start >= known) | (part_start + PART_TOKENS <= position):
        return

    rows_M = tl.arange(0, BLOCK_M)
    position_M = part_start + rows_M // GROUP
    is_row_M = (rows_M < PART_TOKENS * GROUP) & (position_M >= position) & (position_M < known)
    token_M = (first + position_M - position).to(tl.int64)
    head_M = kv_head * GROUP + rows_M % GROUP
    columns_E = tl.arange(0, BLOCK_E)
    is_column_E = columns_E < WIDTH
    is_row_ME = is_row_M[:, None] & is_column_E[None, :]
    q_ME = tl.load(
        q + (token_M * q_stride_t + head_M * q_stride_h)[:, None] + columns_E[None, :], mask=is_row_ME, other=0.0
    )
    keys_N = tl.arange(0, BLOCK_N)
    k += kv_head * k_stride_h
    v += kv_head * v_stride_h
    acc_ME = tl.zeros([BLOCK_M, BLOCK_E], tl.float32)
    peak_M = tl.full([BLOCK_M], _NOTHING, tl.float32)
    total_M = tl.zeros([BLOCK_M], tl.float32)
    for block in range(0, part_start + PART_TOKENS, BLOCK_N):
        position_N = block + keys_N
        is_key_N = position_N < known
        slot_N = tl.load(slots + path + position_N, mask=is_key_N, other=0).to(tl.int64)
        is_key_NE = is_key_N[:, None] & is_column_E[None, :]
        k_NE = tl.load(k + slot_N[:, None] * k_stride_s + columns_E[None, :], mask=is_key_NE, other=0.0)
        scores_MN = tl.dot(q_ME, tl.trans(k_NE), input_precision=PRECISION)
        scores_MN = tl.where(position_N[None, :] <= position_M[:, None], scores_MN, float("-inf"))
        new_peak_M = tl.maximum(peak_M, tl.max(scores_MN, axis=1) * scale_log2)
        weights_MN = tl.exp2(scores_MN * scale_log2 - new_peak_M[:, None])
        shrink_M = tl.exp2(peak_M - new_peak_M)
        total_M = total_M * shrink_M + tl.sum(weights_MN, axis=1)
        peak_M = new_peak_M
        v_NE = tl.load(v + slot_N[:, None] * v_stride_s + columns_E[None, :], mask=is_key_NE, other=0.0)
        acc_ME = tl.dot(weights_MN.to(v_NE.dtype), v_NE, acc_ME * shrink_M[:, None], input_precision=PRECISION)
    tl.store(
        out + (token_M * out_stride_t + head_M * out_stride_h)[:, None] + columns_E[None, :],
        (acc_ME / total_M[:, None]).to(out.dtype.element_ty),
        mask=is_row_ME,
    )


def launch_shape(width: int, itemsize: int, group: int) -> LaunchShape:
    """Block sizes for heads of `width` columns and elements of `itemsize` bytes. Not yet timed on a GPU.

    The largest of those tried that spill no register. The number of tiles must not change them.
    """
    if itemsize == 4:
        shape = LaunchShape(16, 16, 4, 2)
    elif width > 128:
        shape = LaunchShape(64, 16, 8, 2)
    else:
        shape = LaunchShape(64, 32, 4, 2)
    return LaunchShape(
        max(shape.block_m, triton.next_power_of_2(group)), shape.block_n, shape.num_warps, shape.num_stages
    )


def path_attention_triton(
    q_THE: Tensor, k_SKE: Tensor, v_SKE: Tensor, tiles_X4: Tensor, slots_P: Tensor, tile_tokens: int, scale: float
) -> Tensor:
    """`path_attention` from the tables of `path_tiles`, on the device of q_THE."""
    num_tokens, num_heads, width = q_THE.shape
    num_kv_heads = k_SKE.shape[1]
    group = num_heads // num_kv_heads
    shape = launch_shape(width, q_THE.element_size(), group)
    parts = triton.cdiv(tile_tokens, shape.block_m // group)
    out_THE = torch.empty((num_tokens, num_heads, width), dtype=q_THE.dtype, device=q_THE.device)
    _path_attention_kernel[(len(tiles_X4) * parts * num_kv_heads,)](
        q_THE, k_SKE, v_SKE, out_THE, tiles_X4, slots_P,
        *q_THE.stride()[:2], *k_SKE.stride()[:2], *v_SKE.stride()[:2], *out_THE.stride()[:2],
        num_kv_heads, scale * 1.4426950408889634,
        GROUP=group, TILE_TOKENS=tile_tokens, WIDTH=width, BLOCK_M=shape.block_m, BLOCK_N=shape.block_n,
        BLOCK_E=max(16, triton.next_power_of_2(width)), PRECISION=PRECISION,
        num_warps=shape.num_warps, num_stages=shape.num_stages,
    )  # fmt: skip
    return out_THE


def compilations() -> list[Compilation]:
    """Every launch shape by dtype and head width, for groups of four heads and, at width 128, of other sizes."""
    cases = [("bfloat16", width, 4) for width in (64, 96, 128, 256)] + [("float16", 128, 4)]
    cases += [("bfloat16", 128, group) for group in (1, 2, 7, 8)]
    cases += [("float32", width, 4) for width in (64, 128, 256)]
    return [_compilation(*case) for case in cases]


def _compilation(dtype: str, width: int, group: int) -> Compilation:
    shape = launch_shape(width, 4 if dtype == "float32" else 2, group)
    kind = TYPES[dtype]
    strides = ("q_stride_t", "q_stride_h", "k_stride_s", "k_stride_h", "v_stride_s", "v_stride_h")
    signature = {
        **dict.fromkeys(("q", "k", "v", "out"), f"*{kind}"),
        **dict.fromkeys(("tiles", "slots"), "*i32"),
        **dict.fromkeys((*strides, "out_stride_t", "out_stride_h", "num_kv_heads"), "i32"),
        "scale_log2": "fp32",
    }
    constants = {
        "GROUP": group, "TILE_TOKENS": path_tile_tokens(group), "WIDTH": width,
        "BLOCK_M": shape.block_m, "BLOCK_N": shape.block_n, "BLOCK_E": triton.next_power_of_2(width),
        "PRECISION": PRECISION,
    }  # fmt: skip
    return Compilation(
        name=f"path_attention {kind} E={width} G={group} M={shape.block_m} N={shape.block_n}",
        kernel=_path_attention_kernel,
        signature=signature,
        constants=constants,
        num_warps=shape.num_warps,
        num_stages=shape.num_stages,
        may_spill=kind == "fp32" and width > 128,
    )
