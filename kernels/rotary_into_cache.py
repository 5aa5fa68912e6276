"""Reference of `rotary_into_cache`: head norms, rotary embedding and the write into the key/value cache."""

import torch
from torch import Tensor


def rotary_into_cache_reference(
    qkv_TCE: Tensor,
    cos_TF: Tensor,
    sin_TF: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    q_norm_E: Tensor | None,
    k_norm_E: Tensor | None,
    eps: float,
    num_heads: int,
) -> None:
    """`rotary_into_cache` in plain PyTorch, also in place (RoPE: arXiv 2104.09864)."""
    num_tokens, num_kv_heads = len(qkv_TCE), k_SKE.shape[1]
    q_THE, k_TKE, v_TKE = qkv_TCE.tensor_split((num_heads, num_heads + num_kv_heads), dim=1)
    q_THE.copy_(_norm_and_rotate(q_THE, cos_TF, sin_TF, q_norm_E, eps))
    # Without key/value heads there may be no slots either.
    if num_kv_heads:
        k_SKE[:num_tokens] = _norm_and_rotate(k_TKE, cos_TF, sin_TF, k_norm_E, eps)
        v_SKE[:num_tokens] = v_TKE


def _norm_and_rotate(x_THE: Tensor, cos_TF: Tensor, sin_TF: Tensor, norm_E: Tensor | None, eps: float) -> Tensor:
    """Normalises and rotates heads in float32 or float64; the caller rounds."""
    x_THE = x_THE.to(torch.promote_types(x_THE.dtype, torch.float32))
    if norm_E is not None:
        x_THE = x_THE * torch.rsqrt(x_THE.pow(2).mean(dim=-1, keepdim=True) + eps) * norm_E.to(x_THE.dtype)
    first_THF, second_THF = x_THE.tensor_split(2, dim=-1)
    cos_T1F, sin_T1F = cos_TF[:, None], sin_TF[:, None]
    return torch.cat([first_THF * cos_T1F - second_THF * sin_T1F, second_THF * cos_T1F + first_THF * sin_T1F], dim=-1)
