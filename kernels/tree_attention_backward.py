"""Reference of `tree_attention_backward`, with one dense mask.

Shape letters: T packed tokens, which are the key/value slots too, H query heads, K key/value heads, E head width.
"""

import torch
from torch import Tensor

from gram_fast.kernels.tree_attention import tree_mask


def tree_attention_backward_reference(
    grad_out_THE: Tensor,
    q_THE: Tensor,
    k_TKE: Tensor,
    v_TKE: Tensor,
    out_THE: Tensor,
    lse_TH: Tensor,
    spans_N2: Tensor,
    range_offsets: Tensor,
    ranges_R2: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition, in float32 and rounded once."""
    num_tokens, num_heads, _ = q_THE.shape
    num_kv_heads = k_TKE.shape[1]
    mask_TS = tree_mask(spans_N2, range_offsets, ranges_R2, num_tokens, num_tokens).to(q_THE.device)
    grad_THE, q, k, v, out = (x.float() for x in (grad_out_THE, q_THE, k_TKE, v_TKE, out_THE))
    k, v = (x.repeat_interleave(num_heads // num_kv_heads, dim=1) for x in (k, v))
    scores_HTS = torch.einsum("the,she->hts", q, k) * scale
    weights_HTS = (scores_HTS - lse_TH.T[:, :, None]).masked_fill(~mask_TS, float("-inf")).exp()
    grad_weights_HTS = torch.einsum("the,she->hts", grad_THE, v)
    offset_HT = (grad_THE * out).sum(-1).T
    grad_scores_HTS = weights_HTS * (grad_weights_HTS - offset_HT[:, :, None]) * scale
    grad_q_THE = torch.einsum("hts,she->the", grad_scores_HTS, k)
    grad_k_SHE = torch.einsum("hts,the->she", grad_scores_HTS, q)
    grad_v_SHE = torch.einsum("hts,the->she", weights_HTS, grad_THE)
    grad_k_TKE, grad_v_TKE = (
        x.view(num_tokens, num_kv_heads, -1, x.shape[-1]).sum(2).to(k_TKE.dtype) for x in (grad_k_SHE, grad_v_SHE)
    )
    return grad_q_THE.to(q_THE.dtype).contiguous(), grad_k_TKE.contiguous(), grad_v_TKE.contiguous()
