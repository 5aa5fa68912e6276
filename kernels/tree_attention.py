"""Reference of `tree_attention`: attention of packed tokens over their spans and ranges.

Shape letters: T packed tokens of the pass, S key/value slots, H query heads, K key/value heads, E head width, N spans.
"""

import torch
from torch import Tensor


def tree_mask(spans_N2: Tensor, range_offsets: Tensor, ranges_R2: Tensor, num_tokens: int, num_slots: int) -> Tensor:
    """Slots that every query reads, as a bool mask [T, S]: its span up to itself (slots [0, T)), and its ranges."""
    mask_TS = torch.zeros(num_tokens, num_slots, dtype=torch.bool)
    offsets, ranges = range_offsets.tolist(), ranges_R2.tolist()
    for index, (start, end) in enumerate(spans_N2.tolist()):
        mask_TS[start:end, start:end] = torch.ones(end - start, end - start, dtype=torch.bool).tril()
        for key_start, key_end in ranges[offsets[index] : offsets[index + 1]]:
            mask_TS[start:end, key_start:key_end] = True
    return mask_TS


def tree_attention_reference(
    q_THE: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    spans_N2: Tensor,
    range_offsets: Tensor,
    ranges_R2: Tensor,
    scale: float,
) -> Tensor:
    """`tree_attention` with one dense mask and float32 scores: the definition, for tests and as a last resort."""
    num_tokens, num_heads, _ = q_THE.shape
    num_slots, num_kv_heads, _ = k_SKE.shape
    mask_TS = tree_mask(spans_N2, range_offsets, ranges_R2, num_tokens, num_slots).to(q_THE.device)
    k_SHE = k_SKE.repeat_interleave(num_heads // num_kv_heads, dim=1)
    v_SHE = v_SKE.repeat_interleave(num_heads // num_kv_heads, dim=1)
    # float64 inputs stay float64, for tests that need an exact result. Slots that no query reads may hold NaN: they
    # become zero, since 0 * NaN is NaN.
    compute = torch.promote_types(q_THE.dtype, torch.float32)
    is_read_S = mask_TS.any(dim=0)[:, None, None]
    k_SHE = k_SHE.to(compute).where(is_read_S, 0.0)
    v_SHE = v_SHE.to(compute).where(is_read_S, 0.0)
    scores_HTS = torch.einsum("the,she->hts", q_THE.to(compute), k_SHE) * scale
    weights_HTS = scores_HTS.masked_fill(~mask_TS, float("-inf")).softmax(dim=-1)
    return torch.einsum("hts,she->the", weights_HTS, v_SHE).to(q_THE.dtype)
