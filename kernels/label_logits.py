"""Reference of `label_logits`: logits of the two label tokens from hidden states."""

import torch
from torch import Tensor


def label_logits_reference(
    hidden_TD: Tensor,
    rows_L: Tensor,
    label_weight_2D: Tensor,
    norm_weight_D: Tensor | None,
    eps: float,
) -> Tensor:
    """`label_logits` in plain PyTorch: gather, RMSNorm (arXiv 1910.07467) where a weight is given, two dot products."""
    hidden_LD = final_hidden(hidden_TD, rows_L, norm_weight_D, eps)
    return hidden_LD @ label_weight_2D.to(hidden_LD.dtype).T


def final_hidden(hidden_TD: Tensor, rows_L: Tensor, norm_weight_D: Tensor | None, eps: float) -> Tensor:
    """What the output embedding is multiplied with: gathered rows, normalised where a weight is given -> [L, D]."""
    compute = torch.promote_types(hidden_TD.dtype, torch.float32)
    hidden_LD = hidden_TD[rows_L].to(compute)
    if norm_weight_D is not None:
        hidden_LD = hidden_LD * torch.rsqrt(hidden_LD.pow(2).mean(dim=-1, keepdim=True) + eps) * norm_weight_D
    return hidden_LD
