"""Triton kernel of `rotary_into_cache`, in one launch.

Shape letters: T packed tokens, S key/value slots, C heads of the fused projection (queries, keys, values), K key/value
heads, E head width, F = E // 2.
"""

# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs
import triton
import triton.language as tl
from torch import Tensor

from gram_fast.kernels.compilation import TYPES, Compilation


@triton.jit
def _norm(first_CF, second_CF, scale_C1, weight, is_normed_CF, column_F, HALF: tl.constexpr):
    """Multiplies both halves of the heads by scale and weight where `is_normed_CF` holds."""
    first_F = tl.load(weight + column_F, mask=column_F < HALF, other=0.0).to(tl.float32)
    second_F = tl.load(weight + HALF + column_F, mask=column_F < HALF, other=0.0).to(tl.float32)
    return (
        tl.where(is_normed_CF, first_CF * scale_C1 * first_F[None, :], first_CF),
        tl.where(is_normed_CF, second_CF * scale_C1 * second_F[None, :], second_CF),
    )


@triton.jit
def _rotary_into_cache_kernel(
    qkv, cos, sin, k, v, q_norm, k_norm,
    qkv_stride_t, qkv_stride_c, cos_stride, sin_stride, k_stride_s, k_stride_h, v_stride_s, v_stride_h,
    num_heads, num_kv_heads, eps,
    HALF: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """One program per block of a token's heads, which may be queries, keys and values: small models need one block."""
    blocks = tl.cdiv(num_heads + 2 * num_kv_heads, BLOCK_C)
    token = (tl.program_id(0) // blocks).to(tl.int64)
    head_C1 = (tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)).to(tl.int64)[:, None]
    key_head_C1 = head_C1 - num_heads
    value_head_C1 = key_head_C1 - num_kv_heads
    column_F = tl.arange(0, BLOCK_F)
    is_column_1F = (column_F < HALF)[None, :]
    is_query_CF = (head_C1 < num_heads) & is_column_1F
    is_key_CF = (key_head_C1 >= 0) & (value_head_C1 < 0) & is_column_1F
    is_value_CF = (value_head_C1 >= 0) & (value_head_C1 < num_kv_heads) & is_column_1F

    qkv_CF = qkv + token * qkv_stride_t + head_C1 * qkv_stride_c + column_F[None, :]
    is_loaded_CF = is_query_CF | is_key_CF | is_value_CF
    first_CF = tl.load(qkv_CF, mask=is_loaded_CF, other=0.0).to(tl.float32)
    second_CF = tl.load(qkv_CF + HALF, mask=is_loaded_CF, other=0.0).to(tl.float32)
    cos_1F = tl.load(cos + token * cos_stride + column_F, mask=column_F < HALF, other=0.0)[None, :]
    sin_1F = tl.load(sin + token * sin_stride + column_F, mask=column_F < HALF, other=0.0)[None, :]

    squares_C = tl.sum(first_CF * first_CF + second_CF * second_CF, axis=1)
    scale_C1 = tl.rsqrt(squares_C / (2 * HALF) + eps)[:, None]
    if q_norm is not None:
        first_CF, second_CF = _norm(first_CF, second_CF, scale_C1, q_norm, is_query_CF, column_F, HALF)
    if k_norm is not None:
        first_CF, second_CF = _norm(first_CF, second_CF, scale_C1, k_norm, is_key_CF, column_F, HALF)
    rotated_first_CF = (first_CF * cos_1F - second_CF * sin_1F).to(qkv.dtype.element_ty)
    rotated_second_CF = (second_CF * cos_1F + first_CF * sin_1F).to(qkv.dtype.element_ty)

    k_CF = k + token * k_stride_s + key_head_C1 * k_stride_h + column_F[None, :]
    v_CF = v + token * v_stride_s + value_head_C1 * v_stride_h + column_F[None, :]
    tl.store(qkv_CF, rotated_first_CF, mask=is_query_CF)
    tl.store(qkv_CF + HALF, rotated_second_CF, mask=is_query_CF)
    tl.store(k_CF, rotated_first_CF, mask=is_key_CF)
    tl.store(k_CF + HALF, rotated_second_CF, mask=is_key_CF)
    tl.store(v_CF, first_CF.to(v.dtype.element_ty), mask=is_value_CF)
    tl.store(v_CF + HALF, second_CF.to(v.dtype.element_ty), mask=is_value_CF)


def launch_shape(num_channels: int, half: int) -> tuple[int, int, int]:
    """Heads of a block, width of half a head, and number of warps: about 2048 elements, 16 per thread."""
    block_f = triton.next_power_of_2(half)
    block_c = min(max(1024 // block_f, 1), triton.next_power_of_2(num_channels))
    return block_c, block_f, min(max(block_c * block_f // 256, 1), 32)


def rotary_into_cache_triton(
    qkv_TCE: Tensor,
    cos_TF: Tensor,
    sin_TF: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    q_norm_E: Tensor | None,
    k_norm_E: Tensor | None,
    eps: float,
    num_heads: int,
) -> None:
    """`rotary_into_cache` in one launch."""
    num_tokens, num_channels, width = qkv_TCE.shape
    if not qkv_TCE.numel():
        return
    block_c, block_f, num_warps = launch_shape(num_channels, width // 2)
    _rotary_into_cache_kernel[(num_tokens * triton.cdiv(num_channels, block_c),)](
        qkv_TCE, cos_TF, sin_TF, k_SKE, v_SKE, q_norm_E, k_norm_E,
        *qkv_TCE.stride()[:2], cos_TF.stride(0), sin_TF.stride(0), *k_SKE.stride()[:2], *v_SKE.stride()[:2],
        num_heads, k_SKE.shape[1], eps,
        HALF=width // 2, BLOCK_C=block_c, BLOCK_F=block_f, num_warps=num_warps, num_stages=1,
    )  # fmt: skip


def compilations() -> list[Compilation]:
    """Launches by dtype and head width, with and without head norms, and for one head."""
    cases = [("bfloat16", 48, width, has_norms) for width in (64, 96, 128, 256) for has_norms in (True, False)]
    cases += [("bfloat16", 1, 128, True), ("float16", 48, 128, True), ("float32", 48, 128, True)]
    found = []
    for dtype, num_channels, width, has_norms in cases:
        block_c, block_f, num_warps = launch_shape(num_channels, width // 2)
        pointers = ("qkv", "k", "v", "q_norm", "k_norm") if has_norms else ("qkv", "k", "v")
        signature = dict.fromkeys(pointers, f"*{TYPES[dtype]}") | dict.fromkeys(("cos", "sin"), "*fp32")
        strides = ["qkv_stride_t", "qkv_stride_c", "cos_stride", "sin_stride"]
        strides += ["k_stride_s", "k_stride_h", "v_stride_s", "v_stride_h"]
        signature |= dict.fromkeys((*strides, "num_heads", "num_kv_heads"), "i32") | {"eps": "fp32"}
        constants: dict[str, int | None] = {"HALF": width // 2, "BLOCK_C": block_c, "BLOCK_F": block_f}
        constants |= {} if has_norms else {"q_norm": None, "k_norm": None}
        name = f"rotary_into_cache {TYPES[dtype]} E={width} C={block_c}{' norms' if has_norms else ''}"
        found.append(Compilation(name, _rotary_into_cache_kernel, signature, constants, num_warps, 1))
    return found
