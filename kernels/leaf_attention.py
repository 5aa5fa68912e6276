"""Reference of `leaf_attention`: attention of the last token of each leaf over its path.

Shape letters: L leaves, S key/value slots, H query heads, K key/value heads, E head width, N spans, R key ranges.
"""

import torch
from torch import Tensor

from gram_fast.kernels.tree_attention import lowest_read


def leaf_mask(
    spans_N2: Tensor,
    range_offsets: Tensor,
    ranges_R2: Tensor,
    leaf_rows_L: Tensor,
    num_slots: int,
    window: int | None = None,
    is_chunked: bool = False,
) -> Tensor:
    """Slots that every leaf reads, as a bool mask [L, S]: the ranges of its span, and its span up to the leaf.

    They are its path, from the root down; of that it reads what `lowest_read` leaves of it.
    """
    mask_LS = torch.zeros(len(leaf_rows_L), num_slots, dtype=torch.bool)
    spans, offsets, ranges = spans_N2.tolist(), range_offsets.tolist(), ranges_R2.tolist()
    span_of_L = torch.searchsorted(spans_N2[:, 1].contiguous(), leaf_rows_L, right=True).tolist()
    for leaf, (row, span) in enumerate(zip(leaf_rows_L.tolist(), span_of_L, strict=True)):
        path = [*ranges[offsets[span] : offsets[span + 1]], (spans[span][0], row + 1)]
        slots = torch.cat([torch.arange(*extent) for extent in path])
        low = lowest_read(torch.tensor(len(slots) - 1), window, is_chunked)
        mask_LS[leaf, slots[low:]] = True
    return mask_LS


def leaf_attention_reference(
    q_LHE: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    spans_N2: Tensor,
    range_offsets: Tensor,
    ranges_R2: Tensor,
    leaf_rows_L: Tensor,
    scale: float,
    window: int | None = None,
    is_chunked: bool = False,
    sinks_H: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """`leaf_attention` with one dense mask and float32 scores: the definition, for tests and as a last resort."""
    num_leaves, num_heads, width = q_LHE.shape
    num_slots, num_kv_heads, _ = k_SKE.shape
    tables = (spans_N2, range_offsets, ranges_R2, leaf_rows_L)
    mask_LS = leaf_mask(*tables, num_slots, window, is_chunked).to(q_LHE.device)
    # float64 inputs stay float64, for tests that need an exact result. Slots that no leaf reads may hold NaN: they
    # become zero, since 0 * NaN is NaN.
    compute = torch.promote_types(q_LHE.dtype, torch.float32)
    is_read_S = mask_LS.any(dim=0)[:, None, None]
    k_SKE = k_SKE.to(compute).where(is_read_S, 0.0)
    v_SKE = v_SKE.to(compute).where(is_read_S, 0.0)
    # G: the query heads of one key/value head.
    q_LKGE = q_LHE.to(compute).reshape(num_leaves, num_kv_heads, num_heads // num_kv_heads, width)
    scores_LKGS = torch.einsum("lkge,ske->lkgs", q_LKGE, k_SKE) * scale
    if softcap is not None:
        scores_LKGS = softcap * (scores_LKGS / softcap).tanh()
    scores_LKGS = scores_LKGS.masked_fill(~mask_LS[:, None, None], float("-inf"))
    if sinks_H is not None:  # scores of a key without a value
        sinks_KG1 = sinks_H.to(compute).view(num_kv_heads, -1, 1)
        scores_LKGS = torch.cat([scores_LKGS, sinks_KG1.expand(num_leaves, -1, -1, -1)], dim=-1)
    weights_LKGS = scores_LKGS.softmax(dim=-1)[..., :num_slots]
    return torch.einsum("lkgs,ske->lkge", weights_LKGS, v_SKE).reshape(q_LHE.shape).to(q_LHE.dtype)
