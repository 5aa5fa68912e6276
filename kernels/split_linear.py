"""Reference of `split_linear`: a linear layer whose float32 numbers are taken as sums of two bfloat16 numbers."""

import torch
from torch import Tensor


def split_linear_reference(x_TD: Tensor, weight_OD: Tensor, bias_O: Tensor | None) -> Tensor:
    """`split_linear` in plain PyTorch: three products, whose factors are exact in bfloat16, summed in x_TD's dtype."""
    x_high, x_low = split(x_TD)
    weight_high, weight_low = split(weight_OD)
    product_TO = x_high @ weight_low.T + x_high @ weight_high.T + x_low @ weight_high.T
    return product_TO if bias_O is None else product_TO + bias_O


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """The high part of numbers, rounded to bfloat16, and the rest, also rounded to it; both in the dtype of `x`."""
    high = x.to(torch.bfloat16).to(x.dtype)
    return high, (x - high).to(torch.bfloat16).to(x.dtype)
