"""Tree attention by library kernels: each span causally on itself, each range without a mask, and their merge.

On the CPU the library is the flash kernel behind scaled_dot_product_attention, called once per span and once per block.
On CUDA it is torch's variable-length attention, called once for all spans and once per rank of ranges. The arguments of
the calls are made once per pass (`cascade_tables`).

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
"""A function like `merge_states`."""
Range = Sequence[int]
"""Start and end."""


@dataclass(frozen=True)
class CpuCascade:
    """Arguments of the library calls of one pass on the CPU."""

    spans: list[tuple[int, int]]
    """Packed tokens [start, end) that attend causally to themselves."""
    blocks: list[tuple[int, int, int, int]]
    """Queries [start, end) that read slots [key start, key end) without a mask."""


@dataclass(frozen=True)
class VarlenProblems:
    """Arguments of one variable-length call: problem n has the lengths of queries[n] and keys[n], packed in order."""

    queries: Sequence[Range]
    keys: Sequence[Range]
    query_offsets: Tensor
    """int32 [N + 1] on the device: start of each problem's queries, and their number."""
    key_offsets: Tensor
    """int32 [N + 1] on the device: start of each problem's keys, and their number."""

    @classmethod
    def of(cls, queries: Sequence[Range], keys: Sequence[Range], device: torch.device) -> "VarlenProblems":
        """The problems with these ranges of queries and keys; only their lengths are used."""
        return cls(queries, keys, _offsets(queries, device), _offsets(keys, device))


@dataclass(frozen=True)
class CudaCascade:
    """Arguments of the library calls of one pass on CUDA."""

    own: VarlenProblems
    """Every span, on itself."""
    ranks: list[tuple[Tensor, Tensor, VarlenProblems]]
    """For each rank r: packed rows of the spans with an r-th range, the slots of these ranges, and their problems."""


def cascade_tables(
    spans_N2: Tensor, range_offsets: Tensor, ranges_R2: Tensor, device: torch.device
) -> CpuCascade | CudaCascade:
    """Makes the arguments of the library calls from the tables of `tree_attention`, which are on the CPU."""
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
    """`tree_attention` -> [T, H, E], contiguous. `merge`, as `merge_states`, merges partial results in float32."""
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
        """Attention of packed rows over slots -> [1, H, end - start, E], and log-sum-exps [1, H, end - start]."""
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
    # In memory the kernel's results are [T, H, E].
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
    """Additive mask [_CHUNK, _LARGE] of the last chunk of _LARGE queries: each reads keys up to its own."""
    blocked = torch.full((_CHUNK, _LARGE), float("-inf"), dtype=dtype)
    return blocked.triu(_LARGE - _CHUNK + 1)


def attend_cuda(q_THE: Tensor, k_SKE: Tensor, v_SKE: Tensor, tables: CudaCascade, scale: float, merge: Merge) -> Tensor:
    """`tree_attention` by variable-length attention -> [T, H, E]."""
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
    """Attention of packed problems -> results [T, H, E], and log-sum-exps float32 [T, H]."""
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
