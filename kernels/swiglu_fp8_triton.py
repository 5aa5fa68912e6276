"""Triton kernel of `swiglu_fp8`, in one launch.

Shape letters: T packed tokens, G = 2F fused gate and up projections, F feed-forward width.
"""

# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs
import triton
import triton.language as tl
from torch import Tensor

from gram_fast.kernels.add_rms_norm_triton import launch_shape
from gram_fast.kernels.compilation import TYPES, Compilation
from gram_fast.kernels.float8 import store_quantized
from gram_fast.kernels.quantize_rows import empty_quantized
from gram_fast.kernels.swiglu_triton import gated


@triton.jit
def _swiglu_fp8_kernel(gate_up, values, scales, gate_up_stride, WIDTH: tl.constexpr, BLOCK_F: tl.constexpr):
    """One program per row, whose factor needs all of it."""
    row = tl.program_id(0).to(tl.int64)
    column_F = tl.arange(0, BLOCK_F)
    is_column_F = column_F < WIDTH
    gated_F = gated(gate_up + row * gate_up_stride, column_F, is_column_F, WIDTH)
    # Rounded as if it had been stored.
    gated_F = gated_F.to(gate_up.dtype.element_ty).to(tl.float32)
    store_quantized(gated_F, values + row * WIDTH, scales + row, column_F, is_column_F)


def swiglu_fp8_triton(gate_up_TG: Tensor) -> tuple[Tensor, Tensor]:
    """`swiglu_fp8` in one launch."""
    num_tokens, width = gate_up_TG.shape[0], gate_up_TG.shape[1] // 2
    values_TF, scales_T1 = empty_quantized(num_tokens, width, gate_up_TG.device)
    if not num_tokens:
        return values_TF, scales_T1
    block, num_warps = launch_shape(width)
    _swiglu_fp8_kernel[(num_tokens,)](
        gate_up_TG, values_TF, scales_T1, gate_up_TG.stride(0),
        WIDTH=width, BLOCK_F=block, num_warps=num_warps, num_stages=1,
    )  # fmt: skip
    return values_TF, scales_T1


def compilations() -> list[Compilation]:
    """Launches by dtype and width. Compute capability 8.0 has no conversion to float8."""
    found = []
    for dtype, width in (("bfloat16", 6144), ("bfloat16", 12288), ("float16", 6144), ("float32", 6144)):
        block, num_warps = launch_shape(width)
        signature = {"gate_up": f"*{TYPES[dtype]}", "values": "*fp8e4nv", "scales": "*fp32", "gate_up_stride": "i32"}
        constants = {"WIDTH": width, "BLOCK_F": block}
        name = f"swiglu_fp8 {TYPES[dtype]} F={width}"
        found.append(Compilation(name, _swiglu_fp8_kernel, signature, constants, num_warps, 1, (90, 100)))
    return found
