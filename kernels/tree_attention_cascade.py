"""Tree attention by library kernels: each span causally on itself, then each key range without a mask, merged.

On the CPU SDPA's flash kernel, one call a span and one a block; on CUDA torch's variable-length attention, one call for
all spans and one for every rank of ranges. What is called with what is worked out once a pass (`cascade_tables`).

Shape letters: T packed tokens, S key/value slots, H query heads, K key/value heads, E head width, N spans or problems,
R key ranges.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gram_fast.extension import _C
from gram_fast.kernels.tables import uploaded

Merge = Callable[[Tensor, Tensor, Tensor, Tensor], None]
Range = Sequence[int]
"""Start and end."""


@dataclass(frozen=True)
class CpuCascade:
    """The calls of one pass on the CPU."""

    spans: list[tuple[int, int]]
    """Packed [start, end), causal on themselves."""
    blocks: list[tuple[int, int, int, int]]
    """Queries [start, end) that read slots [key start, key end) without a mask."""


@dataclass(frozen=True)
class VarlenProblems:
    """Packed attention problems: problem n has queries[n] and keys[n], behind those of the problems before it."""

    queries: Sequence[Range]
    keys: Sequence[Range]
    query_offsets: Tensor
    """int32 [N + 1] on the device: where each problem's queries begin among all."""
    key_offsets: Tensor
    """int32 [N + 1] on the device."""

    @classmethod
    def of(cls, queries: Sequence[Range], keys: Sequence[Range], device: torch.device) -> "VarlenProblems":
        """The problems with these ranges of queries and of keys, of which only the lengths matter here."""
        return cls(queries, keys, _offsets(queries, device), _offsets(keys, device))


@dataclass(frozen=True)
class CudaCascade:
    """The calls of one pass on CUDA."""

    own: VarlenProblems
    """Every span on itself."""
    ranks: list[tuple[Tensor, Tensor, VarlenProblems]]
    """For the r-th ranges of all spans: packed rows that ask, slots that they read, and which read which."""


def cascade_tables(
    spans_N2: Tensor, range_offsets: Tensor, ranges_R2: Tensor, device: torch.device
) -> CpuCascade | CudaCascade:
    """The calls of a pass whose tables, on the CPU, are those of `tree_attention`."""
    spans = [(start, end) for start, end in spans_N2.tolist()]
    blocks = _C.attention_blocks(spans_N2.numpy(), range_offsets.numpy(), ranges_R2.numpy()).tolist()
    if device.type == "cpu":
        return CpuCascade(spans, [(start, end, key_start, key_end) for _, start, end, key_start, key_end in blocks])
    return CudaCascade(VarlenProblems.of(spans, spans, device), varlen_ranks(blocks, device))


def varlen_ranks(blocks: list[list[int]], device: torch.device) -> list[tuple[Tensor, Tensor, VarlenProblems]]:
    """The ranks of a CudaCascade from rows [rank, query start, query end, slot start, slot end]."""
    ranks = []
    for rank in range(blocks[-1][0] + 1 if blocks else 0):
        of_rank = [block for block in blocks if block[0] == rank]
        queries, keys = [block[1:3] for block in of_rank], [block[3:5] for block in of_rank]
        ranks.append((_indices(queries, device), _indices(keys, device), VarlenProblems.of(queries, keys, device)))
    return ranks


def cascade_attention(
    q_THE: Tensor, k_SKE: Tensor, v_SKE: Tensor, tables: CpuCascade | CudaCascade, scale: float, merge: Merge
) -> Tensor:
    """`tree_attention` -> [T, H, E], contiguous; partial results are merged in float32 with `merge`."""
    if isinstance(tables, CpuCascade):
        return _attend_cpu(q_THE, k_SKE, v_SKE, tables, scale, merge).contiguous()
    return attend_cuda(q_THE, k_SKE, v_SKE, tables, scale, merge).contiguous()


# The CPU flash kernel walks keys in blocks of 512 even where the causal mask hides most of one. Below 768 tokens, where
# its query blocks are 64 rows, chunks of queries with just the keys before them took 0.80 to 0.89 of the time (350 to
# 700 tokens, 6 heads of 64, two cores); from 768 on, with blocks of 256 rows, one call is faster.
_CHUNK = 192
_LARGE = 768


def _attend_cpu(q_THE: Tensor, k_SKE: Tensor, v_SKE: Tensor, tables: CpuCascade, scale: float, merge: Merge) -> Tensor:
    q_1HTE, k_1KSE, v_1KSE = (tensor[None].transpose(1, 2) for tensor in (q_THE, k_SKE, v_SKE))
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def attend(
        start: int, end: int, key_start: int, key_end: int, is_causal: bool = False, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Results [1, H, end - start, E] and log-sum-exps [1, H, end - start] of some rows on some slots."""
        query_1HTE, num_keys = q_1HTE.narrow(2, start, end - start), key_end - key_start
        keys_1KSE, values_1KSE = k_1KSE.narrow(2, key_start, num_keys), v_1KSE.narrow(2, key_start, num_keys)
        return flash(query_1HTE, keys_1KSE, values_1KSE, 0.0, is_causal, attn_mask=mask, scale=scale)  # type: ignore[no-any-return]

    parts = []
    for start, end in tables.spans:
        if not _CHUNK < end - start < _LARGE:
            parts.append(attend(start, end, start, end, is_causal=True))
            continue
        for begin in range(start, end, _CHUNK):
            stop = min(begin + _CHUNK, end)
            mask = _chunk_mask(q_THE.dtype)[: stop - begin, _LARGE - _CHUNK - (begin - start) :]
            parts.append(attend(begin, stop, start, stop, mask=mask[None, None, :, : stop - start]))
    if len(parts) == 1 and not tables.blocks:
        return parts[0][0][0].transpose(0, 1)
    # The kernel's results lie in memory as [T, H, E].
    out_THE = torch.cat([out_1HTE.transpose(1, 2) for out_1HTE, _ in parts], dim=1)[0]
    if not tables.blocks:
        return out_THE
    merged_THE = out_THE.float()
    lse_TH = torch.cat([lse_1HT.transpose(1, 2) for _, lse_1HT in parts], dim=1)[0]
    for start, end, key_start, key_end in tables.blocks:
        out_1HTE, lse_1HT = attend(start, end, key_start, key_end)
        merge(merged_THE[start:end], lse_TH[start:end], out_1HTE[0].transpose(0, 1), lse_1HT[0].transpose(0, 1))
    return merged_THE.to(q_THE.dtype)


@functools.cache
def _chunk_mask(dtype: torch.dtype) -> Tensor:
    """[_CHUNK, _LARGE] additive mask: row r of the last chunk of _LARGE queries sees keys up to its own."""
    blocked = torch.full((_CHUNK, _LARGE), float("-inf"), dtype=dtype)
    return blocked.triu(_LARGE - _CHUNK + 1)


def attend_cuda(q_THE: Tensor, k_SKE: Tensor, v_SKE: Tensor, tables: CudaCascade, scale: float, merge: Merge) -> Tensor:
    """The cascade over variable-length attention."""
    num_tokens = q_THE.shape[0]
    first, first_lse_TH = varlen_attention(
        q_THE, k_SKE[:num_tokens], v_SKE[:num_tokens], tables.own, scale, is_causal=True
    )
    out_THE, lse_TH = first.float(), first_lse_TH.contiguous()
    for rows, slots, problems in tables.ranks:
        part, part_lse = varlen_attention(q_THE[rows], k_SKE[slots], v_SKE[slots], problems, scale, is_causal=False)
        # Queries outside this rank merge with an empty result.
        other_THE = torch.zeros_like(first).index_copy_(0, rows, part)
        other_lse_TH = torch.full_like(lse_TH, float("-inf")).index_copy_(0, rows, part_lse.contiguous())
        merge(out_THE, lse_TH, other_THE, other_lse_TH)
    return out_THE.to(q_THE.dtype)


def _lengths(ranges: Sequence[Range]) -> list[int]:
    return [end - start for start, end in ranges]


def _offsets(ranges: Sequence[Range], device: torch.device) -> Tensor:
    return uploaded(torch.tensor([0, *_lengths(ranges)]).cumsum(0, dtype=torch.int32), device)


def _indices(ranges: Sequence[Range], device: torch.device) -> Tensor:
    return uploaded(torch.cat([torch.arange(start, end) for start, end in ranges]), device)


def varlen_attention(
    q_THE: Tensor, k_SKE: Tensor, v_SKE: Tensor, problems: VarlenProblems, scale: float, is_causal: bool
) -> tuple[Tensor, Tensor]:
    """Attention of packed problems -> out [T, H, E], log-sum-exps [T, H] float32."""
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

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
        problems.query_offsets,
        problems.key_offsets,
        max(_lengths(problems.queries)),
        max(_lengths(problems.keys)),
        return_aux=AuxRequest(lse=True),
        scale=scale,
        window_size=(-1, 0) if is_causal else (-1, -1),
        **options,
    )
    return out_THE, lse_HT.transpose(0, 1)
