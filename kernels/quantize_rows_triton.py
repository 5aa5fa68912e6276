"""Triton kernel of `quantize_rows`: one launch; each row is read once and stays in registers.

Shape letters: T rows, D their width.
"""

# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs
import triton
import triton.language as tl
from torch import Tensor

from gram_fast.kernels.add_rms_norm_triton import launch_shape
from gram_fast.kernels.compilation import TYPES, Compilation
from gram_fast.kernels.float8 import store_quantized
from gram_fast.kernels.quantize_rows import empty_quantized


@triton.jit
def _quantize_rows_kernel(x, values, scales, x_stride, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """One program per row."""
    row = tl.program_id(0).to(tl.int64)
    column_D = tl.arange(0, BLOCK_D)
    is_column_D = column_D < WIDTH
    x_D = tl.load(x + row * x_stride + column_D, mask=is_column_D, other=0.0).to(tl.float32)
    store_quantized(x_D, values + row * WIDTH, scales + row, column_D, is_column_D)


def quantize_rows_triton(x_TD: Tensor) -> tuple[Tensor, Tensor]:
    """`quantize_rows` in one launch."""
    num_rows, width = x_TD.shape
    values_TD, scales_T1 = empty_quantized(num_rows, width, x_TD.device)
    if not num_rows:
        return values_TD, scales_T1
    block, num_warps = launch_shape(width)
    _quantize_rows_kernel[(num_rows,)](
        x_TD, values_TD, scales_T1, x_TD.stride(0), WIDTH=width, BLOCK_D=block, num_warps=num_warps, num_stages=1
    )  # fmt: skip
    return values_TD, scales_T1


def compilations() -> list[Compilation]:
    """Launches by dtype and width. Compute capability 8.0 has no conversion to float8."""
    cases = [("bfloat16", width) for width in (2048, 4096, 12288)] + [("float16", 4096), ("float32", 4096)]
    found = []
    for dtype, width in cases:
        block, num_warps = launch_shape(width)
        signature = {"x": f"*{TYPES[dtype]}", "values": "*fp8e4nv", "scales": "*fp32", "x_stride": "i32"}
        constants = {"WIDTH": width, "BLOCK_D": block}
        name = f"quantize_rows {TYPES[dtype]} D={width}"
        found.append(Compilation(name, _quantize_rows_kernel, signature, constants, num_warps, 1, (90, 100)))
    return found
