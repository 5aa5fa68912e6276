"""Reference of `quantize_rows`: each row as numbers of float8_e4m3fn times one factor."""

import torch
from torch import Tensor

FLOAT8 = torch.float8_e4m3fn
"""One sign, four exponent and three mantissa bits; no infinity."""
LARGEST = 448.0
"""Largest number of FLOAT8."""
SMALLEST_ROW = 2.0**-100
"""Rows whose numbers are all smaller are scaled as if one had this size: its reciprocal, times LARGEST, is finite."""


def empty_quantized(num_rows: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Uninitialised values [T, D] and scales [T, 1] of a kernel."""
    values_TD = torch.empty((num_rows, width), dtype=FLOAT8, device=device)
    return values_TD, torch.empty((num_rows, 1), dtype=torch.float32, device=device)


def quantize_rows_reference(x_TD: Tensor) -> tuple[Tensor, Tensor]:
    """`quantize_rows` in plain PyTorch."""
    x_TD = x_TD.float()
    largest_T1 = x_TD.abs().amax(dim=-1, keepdim=True).clamp(min=SMALLEST_ROW)
    # Quotients of tensors are rounded once. With a number for a tensor torch multiplies by a reciprocal.
    bound_T1 = torch.full_like(largest_T1, LARGEST)
    # No product exceeds the bound by more than float32's rounding, which float8 rounds back to it.
    return (x_TD * (bound_T1 / largest_T1)).to(FLOAT8), largest_T1 / bound_T1
