"""Reference of `tree_attention`: attention of packed tokens over their spans and ranges.

Shape letters: T packed tokens of the pass, S key/value slots, H query heads, K key/value heads, E head width, N spans.
"""

import torch
from torch import Tensor


def lowest_read(positions: Tensor, window: int | None, is_chunked: bool) -> Tensor:
    """The lowest position that a token at each of these reads: the first, or of a window of so many tokens.

    A sliding window holds the token itself and those before it. Chunks begin at multiples of the window, and a token
    reads its own up to itself.
    """
    if window is None:
        return torch.zeros_like(positions)
    return positions // window * window if is_chunked else (positions - window + 1).clamp(min=0)


def tree_mask(
    spans_N2: Tensor,
    range_offsets: Tensor,
    ranges_R2: Tensor,
    num_tokens: int,
    num_slots: int,
    window: int | None = None,
    is_chunked: bool = False,
) -> Tensor:
    """Slots that every query reads, as a bool mask [T, S]: its ranges, and its span up to itself (slots [0, T)).

    They are its path, from the root down; of that it reads what `lowest_read` leaves of it.
    """
    mask_TS = torch.zeros(num_tokens, num_slots, dtype=torch.bool)
    offsets, ranges = range_offsets.tolist(), ranges_R2.tolist()
    for index, (start, end) in enumerate(spans_N2.tolist()):
        path = [torch.arange(*extent) for extent in [*ranges[offsets[index] : offsets[index + 1]], (start, end)]]
        slots = torch.cat(path)
        keys = torch.arange(len(slots))
        queries = keys[len(slots) - (end - start) :, None]
        mask_TS[start:end, slots] = (keys <= queries) & (keys >= lowest_read(queries, window, is_chunked))
    return mask_TS


def tree_attention_reference(
    q_THE: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    spans_N2: Tensor,
    range_offsets: Tensor,
    ranges_R2: Tensor,
    scale: float,
    window: int | None = None,
    is_chunked: bool = False,
    sinks_H: Tensor | None = None,
    softcap: float | None = None,
) -> Tensor:
    """`tree_attention` with one dense mask and float32 scores: the definition, for tests and as a last resort."""
    num_tokens, num_heads, _ = q_THE.shape
    num_slots, num_kv_heads, _ = k_SKE.shape
    tables = (spans_N2, range_offsets, ranges_R2)
    mask_TS = tree_mask(*tables, num_tokens, num_slots, window, is_chunked).to(q_THE.device)
    k_SHE = k_SKE.repeat_interleave(num_heads // num_kv_heads, dim=1)
    v_SHE = v_SKE.repeat_interleave(num_heads // num_kv_heads, dim=1)
    # float64 inputs stay float64, for tests that need an exact result. Slots that no query reads may hold NaN: they
    # become zero, since 0 * NaN is NaN.
    compute = torch.promote_types(q_THE.dtype, torch.float32)
    is_read_S = mask_TS.any(dim=0)[:, None, None]
    k_SHE = k_SHE.to(compute).where(is_read_S, 0.0)
    v_SHE = v_SHE.to(compute).where(is_read_S, 0.0)
    scores_HTS = torch.einsum("the,she->hts", q_THE.to(compute), k_SHE) * scale
    if softcap is not None:
        scores_HTS = softcap * (scores_HTS / softcap).tanh()
    scores_HTS = scores_HTS.masked_fill(~mask_TS, float("-inf"))
    if sinks_H is not None:  # scores of a key without a value
        scores_HTS = torch.cat([scores_HTS, sinks_H.to(compute)[:, None, None].expand(-1, num_tokens, 1)], dim=-1)
    weights_HTS = scores_HTS.softmax(dim=-1)[..., :num_slots]
    return torch.einsum("hts,she->the", weights_HTS, v_SHE).to(q_THE.dtype)
