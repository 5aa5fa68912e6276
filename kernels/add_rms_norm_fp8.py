"""Reference of `add_rms_norm_fp8`: `add_rms_norm`, then `quantize_rows`."""

from torch import Tensor

from gram_fast.kernels.add_rms_norm import add_rms_norm_reference
from gram_fast.kernels.quantize_rows import quantize_rows_reference


def add_rms_norm_fp8_reference(
    residual_TD: Tensor, x_TD: Tensor | None, weight_D: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """`add_rms_norm_fp8` in plain PyTorch, also in place on `residual_TD`."""
    return quantize_rows_reference(add_rms_norm_reference(residual_TD, x_TD, weight_D, eps))
