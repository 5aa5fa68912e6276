"""Tree attention from library attention: one call per span and per ancestor range, merged by log-sum-exp.

On the CPU the library is the flash kernel behind scaled_dot_product_attention; on CUDA it is torch's variable-length
attention, one call for all spans and one per rank of ancestor ranges.
Shape letters: T packed tokens of the pass, S key/value slots, H query heads, K key/value heads, E head width, N spans.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gram_fast.extension import _C

Merge = Callable[[Tensor, Tensor, Tensor, Tensor], None]


def cascade_attention(
    q_THE: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    spans_N2: Tensor,
    range_offsets: Tensor,
    ranges_R2: Tensor,
    scale: float,
    merge: Merge,
) -> Tensor:
    """`tree_attention`; partial results are merged in float32 with `merge`."""
    blocks = _C.attention_blocks(spans_N2.numpy(), range_offsets.numpy(), ranges_R2.numpy()).tolist()
    attend = _attend_cuda if q_THE.is_cuda else _attend_cpu
    return attend(q_THE, k_SKE, v_SKE, spans_N2.tolist(), blocks, scale, merge)


def _attend_cpu(
    q_THE: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    spans: list[list[int]],
    blocks: list[list[int]],
    scale: float,
    merge: Merge,
) -> Tensor:
    def flash(query: slice, keys: slice, is_causal: bool = False, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        out_1HTE, lse_1HT = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q_THE[None, query].transpose(1, 2),
            k_SKE[None, keys].transpose(1, 2),
            v_SKE[None, keys].transpose(1, 2),
            0.0,
            is_causal,
            attn_mask=mask,
            scale=scale,
        )
        return out_1HTE[0].transpose(0, 1), lse_1HT[0].transpose(0, 1)

    if len(spans) == 1 and not blocks:
        return flash(slice(*spans[0]), slice(*spans[0]), is_causal=True)[0]
    out_THE = torch.empty_like(q_THE, dtype=torch.float32)
    lse_TH = torch.empty(q_THE.shape[:2], dtype=torch.float32)
    for start, end in spans:
        if not _CHUNK < end - start < _LARGE:
            out_THE[start:end], lse_TH[start:end] = flash(slice(start, end), slice(start, end), is_causal=True)
            continue
        for begin in range(start, end, _CHUNK):
            chunk, keys = slice(begin, min(begin + _CHUNK, end)), slice(start, min(begin + _CHUNK, end))
            mask = _chunk_mask(q_THE.dtype)[: chunk.stop - chunk.start, _LARGE - _CHUNK - (begin - start) :]
            mask = mask[None, None, :, : keys.stop - keys.start]
            out_THE[chunk], lse_TH[chunk] = flash(chunk, keys, mask=mask)
    for _, start, end, key_start, key_end in blocks:
        merge(out_THE[start:end], lse_TH[start:end], *flash(slice(start, end), slice(key_start, key_end)))
    return out_THE.to(q_THE.dtype)


# The CPU flash kernel walks keys in blocks of 512 even where the causal mask hides most of one. Below 768 tokens, where
# its query blocks are 64 rows, chunks of queries with just the keys before them took 0.80 to 0.89 of the time (350 to
# 700 tokens, 6 heads of 64, two cores); from 768 on, with blocks of 256 rows, one call is faster.
_CHUNK = 192
_LARGE = 768


@functools.cache
def _chunk_mask(dtype: torch.dtype) -> Tensor:
    """[_CHUNK, _LARGE] additive mask: row r of the last chunk of _LARGE queries sees keys up to its own."""
    blocked = torch.full((_CHUNK, _LARGE), float("-inf"), dtype=dtype)
    return blocked.triu(_LARGE - _CHUNK + 1)


def _attend_cuda(
    q_THE: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    spans: list[list[int]],
    blocks: list[list[int]],
    scale: float,
    merge: Merge,
) -> Tensor:
    num_tokens = q_THE.shape[0]
    first, first_lse_TH = varlen_attention(
        q_THE, k_SKE[:num_tokens], v_SKE[:num_tokens], spans, spans, scale, is_causal=True
    )
    out_THE, lse_TH = first.float(), first_lse_TH.contiguous()
    for rank in range(blocks[-1][0] + 1 if blocks else 0):
        of_rank = [block for block in blocks if block[0] == rank]
        queries, keys = [block[1:3] for block in of_rank], [block[3:5] for block in of_rank]
        rows, slots = _indices(queries, q_THE.device), _indices(keys, q_THE.device)
        part, part_lse = varlen_attention(
            q_THE[rows], k_SKE[slots], v_SKE[slots], queries, keys, scale, is_causal=False
        )
        # Queries outside this rank merge with an empty result.
        other_THE = torch.zeros_like(first).index_copy_(0, rows, part)
        other_lse_TH = torch.full_like(lse_TH, float("-inf")).index_copy_(0, rows, part_lse.contiguous())
        merge(out_THE, lse_TH, other_THE, other_lse_TH)
    return out_THE.to(q_THE.dtype)


def _indices(ranges: list[list[int]], device: torch.device) -> Tensor:
    return torch.cat([torch.arange(start, end) for start, end in ranges]).to(device, non_blocking=True)


def varlen_attention(
    q_THE: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    queries: list[list[int]],
    keys: list[list[int]],
    scale: float,
    is_causal: bool,
) -> tuple[Tensor, Tensor]:
    """Attention of packed problems: those lengths of queries on those of keys -> out [T, H, E], lse [T, H] float32."""
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    lengths_q = torch.tensor([end - start for start, end in queries])
    lengths_k = torch.tensor([end - start for start, end in keys])
    options: dict[str, Any] = {}
    if q_THE.shape[1] != k_SKE.shape[1]:
        if "enable_gqa" in inspect.signature(varlen_attn).parameters:
            options["enable_gqa"] = True
        else:  # torch 2.11
            group = q_THE.shape[1] // k_SKE.shape[1]
            k_SKE, v_SKE = k_SKE.repeat_interleave(group, dim=1), v_SKE.repeat_interleave(group, dim=1)
    out_THE, lse_HT = varlen_attn(
        q_THE,
        k_SKE,
        v_SKE,
        torch.nn.functional.pad(lengths_q.cumsum(0), (1, 0)).to(q_THE.device, torch.int32),
        torch.nn.functional.pad(lengths_k.cumsum(0), (1, 0)).to(q_THE.device, torch.int32),
        int(lengths_q.max()),
        int(lengths_k.max()),
        return_aux=AuxRequest(lse=True),
        scale=scale,
        window_size=(-1, 0) if is_causal else (-1, -1),
        **options,
    )
    return out_THE, lse_HT.transpose(0, 1)
