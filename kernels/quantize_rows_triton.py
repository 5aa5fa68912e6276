"""Triton kernel of `quantize_rows`: one launch; each row is read once and stays in registers.

Shape letters: T rows, D their width.
"""

# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs
import torch
import triton
import triton.language as tl
from torch import Tensor

from gram_fast.kernels.add_rms_norm_triton import launch_shape
from gram_fast.kernels.compilation import TYPES, Compilation
from gram_fast.kernels.quantize_rows import FLOAT8, LARGEST, SMALLEST_ROW


@triton.jit
def _quantize_rows_kernel(
    x, values, scales, x_stride, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr, LARGEST: tl.constexpr,
    SMALLEST_ROW: tl.constexpr,
):  # fmt: skip
    """One program per row."""
    row = tl.program_id(0).to(tl.int64)
    column_D = tl.arange(0, BLOCK_D)
    is_column_D = column_D < WIDTH
    x_D = tl.load(x + row * x_stride + column_D, mask=is_column_D, other=0.0).to(tl.float32)
    # The reference rounds both quotients; Triton's "/" may be off by two units in the last place.
    largest = tl.maximum(tl.max(tl.abs(x_D)), SMALLEST_ROW)
    tl.store(scales + row, tl.math.div_rn(largest, LARGEST))
    value_D = x_D * tl.math.div_rn(LARGEST, largest)
    tl.store(values + row * WIDTH + column_D, value_D.to(values.dtype.element_ty), mask=is_column_D)


def quantize_rows_triton(x_TD: Tensor) -> tuple[Tensor, Tensor]:
    """`quantize_rows` in one launch."""
    num_rows, width = x_TD.shape
    values_TD = torch.empty((num_rows, width), dtype=FLOAT8, device=x_TD.device)
    scales_T1 = torch.empty((num_rows, 1), dtype=torch.float32, device=x_TD.device)
    if not num_rows:
        return values_TD, scales_T1
    block, num_warps = launch_shape(width)
    _quantize_rows_kernel[(num_rows,)](
        x_TD, values_TD, scales_T1, x_TD.stride(0),
        WIDTH=width, BLOCK_D=block, LARGEST=LARGEST, SMALLEST_ROW=SMALLEST_ROW, num_warps=num_warps, num_stages=1,
    )  # fmt: skip
    return values_TD, scales_T1


def compilations() -> list[Compilation]:
    """Launches by dtype and width. Compute capability 8.0 has no conversion to float8."""
    cases = [("bfloat16", width) for width in (2048, 4096, 12288)] + [("float16", 4096), ("float32", 4096)]
    found = []
    for dtype, width in cases:
        block, num_warps = launch_shape(width)
        signature = {"x": f"*{TYPES[dtype]}", "values": "*fp8e4nv", "scales": "*fp32", "x_stride": "i32"}
        constants = {"WIDTH": width, "BLOCK_D": block, "LARGEST": LARGEST, "SMALLEST_ROW": SMALLEST_ROW}
        name = f"quantize_rows {TYPES[dtype]} D={width}"
        found.append(Compilation(name, _quantize_rows_kernel, signature, constants, num_warps, 1, (90, 100)))
    return found
