"""Triton kernel of `merge_states`, in one launch.

Shape letters: T queries, H query heads, E head width, R rows (query, head) of a block.
"""

# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs
import triton
import triton.language as tl
from torch import Tensor

from gram_fast.kernels.compilation import TYPES, Compilation


@triton.jit(do_not_specialize=["num_rows"])
def _merge_states_kernel(
    out, lse, other_out, other_lse,
    out_stride_t, out_stride_h, lse_stride_t, lse_stride_h,
    other_out_stride_t, other_out_stride_h, other_lse_stride_t, other_lse_stride_h,
    num_rows, num_heads,
    WIDTH: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """One program per block of rows."""
    row_R = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    is_row_R = row_R < num_rows
    t_R, h_R = row_R // num_heads, row_R % num_heads
    lse += t_R * lse_stride_t + h_R * lse_stride_h
    other_lse += t_R * other_lse_stride_t + h_R * other_lse_stride_h
    lse_R = tl.load(lse, mask=is_row_R, other=float("-inf"))
    other_lse_R = tl.load(other_lse, mask=is_row_R, other=float("-inf"))
    peak_R = tl.maximum(lse_R, other_lse_R)
    # Without a key on either side the row does not change; a peak of 0 avoids inf - inf.
    has_keys_R = peak_R > float("-inf")
    peak_R = tl.where(has_keys_R, peak_R, 0.0)
    weight_R, other_weight_R = tl.exp(lse_R - peak_R), tl.exp(other_lse_R - peak_R)
    total_R = tl.where(has_keys_R, weight_R + other_weight_R, 1.0)
    scale_R1, other_scale_R1 = (weight_R / total_R)[:, None], (other_weight_R / total_R)[:, None]

    out += (t_R * out_stride_t + h_R * out_stride_h)[:, None]
    other_out += (t_R * other_out_stride_t + h_R * other_out_stride_h)[:, None]
    for start in range(0, WIDTH, BLOCK_E):
        column_1E = start + tl.arange(0, BLOCK_E)[None, :]
        is_column_1E = column_1E < WIDTH
        # Masked by the row alone, so that these loads do not wait for the lse.
        out_RE = tl.load(out + column_1E, mask=is_row_R[:, None] & is_column_1E, other=0.0)
        other_RE = tl.load(other_out + column_1E, mask=is_row_R[:, None] & is_column_1E, other=0.0).to(tl.float32)
        merged_RE = scale_R1 * out_RE + other_scale_R1 * other_RE
        tl.store(out + column_1E, merged_RE, mask=has_keys_R[:, None] & is_column_1E)
    # All threads of a row must have read the lse before one overwrites it.
    tl.debug_barrier()
    tl.store(lse, peak_R + tl.log(total_R), mask=has_keys_R)


def launch_shape(width: int) -> tuple[int, int, int]:
    """Rows and columns of a block, and number of warps, with four numbers per thread.

    They are 16 bytes of `out` and 8 of a 16-bit other result. With eight, the latter would be loaded in another layout
    and transposed through shared memory.
    """
    block_e = min(triton.next_power_of_2(max(width, 1)), 1024)
    return 1024 // block_e, block_e, 8


def merge_states_triton(out_THE: Tensor, lse_TH: Tensor, other_out_THE: Tensor, other_lse_TH: Tensor) -> None:
    """`merge_states` in one launch."""
    num_tokens, num_heads, width = out_THE.shape
    num_rows = num_tokens * num_heads
    if not num_rows:
        return
    block_r, block_e, num_warps = launch_shape(width)
    _merge_states_kernel[(triton.cdiv(num_rows, block_r),)](
        out_THE, lse_TH, other_out_THE, other_lse_TH,
        *out_THE.stride()[:2], *lse_TH.stride(), *other_out_THE.stride()[:2], *other_lse_TH.stride(),
        num_rows, num_heads,
        WIDTH=width, BLOCK_R=block_r, BLOCK_E=block_e, num_warps=num_warps, num_stages=1,
    )  # fmt: skip


def compilations() -> list[Compilation]:
    """Launches by dtype of the second result and head width."""
    found = []
    for dtype, width in [*(("bfloat16", width) for width in (64, 96, 128, 256)), ("float16", 128), ("float32", 128)]:
        block_r, block_e, num_warps = launch_shape(width)
        signature = dict.fromkeys(("out", "lse", "other_lse"), "*fp32") | {"other_out": f"*{TYPES[dtype]}"}
        strides = [f"{tensor}_stride_{axis}" for tensor in ("out", "lse", "other_out", "other_lse") for axis in "th"]
        signature |= dict.fromkeys((*strides, "num_rows", "num_heads"), "i32")
        constants = {"WIDTH": width, "BLOCK_R": block_r, "BLOCK_E": block_e}
        name = f"merge_states {TYPES[dtype]} E={width}"
        found.append(Compilation(name, _merge_states_kernel, signature, constants, num_warps, 1))
    return found
