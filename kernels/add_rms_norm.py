"""Reference of `add_rms_norm`: addition to the residual stream and RMSNorm of the sum."""

import torch
from torch import Tensor


def add_rms_norm_reference(residual_TD: Tensor, x_TD: Tensor | None, weight_D: Tensor, eps: float) -> Tensor:
    """`add_rms_norm` in plain PyTorch, also in place: the norm (arXiv 1910.07467) reads the rounded sum."""
    compute = torch.promote_types(residual_TD.dtype, torch.float32)
    if x_TD is not None:
        residual_TD.copy_(residual_TD.to(compute) + x_TD.to(compute))
    sum_TD = residual_TD.to(compute)
    scale_T1 = torch.rsqrt(sum_TD.pow(2).mean(dim=-1, keepdim=True) + eps)
    return (sum_TD * scale_T1 * weight_D.to(compute)).to(residual_TD.dtype)
