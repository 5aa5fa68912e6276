"""Reference of `swiglu_fp8`: `swiglu`, then `quantize_rows`."""

from torch import Tensor

from gram_fast.kernels.quantize_rows import quantize_rows_reference
from gram_fast.kernels.swiglu import swiglu_reference


def swiglu_fp8_reference(gate_up_TG: Tensor) -> tuple[Tensor, Tensor]:
    """`swiglu_fp8` in plain PyTorch."""
    return quantize_rows_reference(swiglu_reference(gate_up_TG))
