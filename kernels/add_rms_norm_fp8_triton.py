"""Triton kernel of `add_rms_norm_fp8`: that of `add_rms_norm`, which quantizes a row while it is in registers.

Shape letters: T packed tokens, D model width.
"""

from torch import Tensor

from gram_fast.kernels import add_rms_norm_triton
from gram_fast.kernels.add_rms_norm_triton import add_rms_norm_kernel, launch_shape
from gram_fast.kernels.compilation import Compilation
from gram_fast.kernels.quantize_rows import empty_quantized


def add_rms_norm_fp8_triton(
    residual_TD: Tensor, x_TD: Tensor | None, weight_D: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """`add_rms_norm_fp8` in one launch."""
    num_tokens, width = residual_TD.shape
    values_TD, scales_T1 = empty_quantized(num_tokens, width, residual_TD.device)
    if not num_tokens:
        return values_TD, scales_T1
    block, num_warps = launch_shape(width)
    add_rms_norm_kernel[(num_tokens,)](
        residual_TD, x_TD, weight_D, values_TD, scales_T1,
        residual_TD.stride(0), 0 if x_TD is None else x_TD.stride(0), eps,
        WIDTH=width, BLOCK_D=block, num_warps=num_warps, num_stages=1,
    )  # fmt: skip
    return values_TD, scales_T1


def compilations() -> list[Compilation]:
    """Those of `add_rms_norm` that have a GPU for them."""
    return add_rms_norm_triton.compilations(is_fp8=True)
