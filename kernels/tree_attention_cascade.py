"""Tree attention by library kernels: each span causally on itself, each range without a mask, and their merge.

On the CPU the library is the flash kernel behind scaled_dot_product_attention, called once per span and once per block.
On CUDA it is torch's variable-length attention, called once for all spans and once per rank of ranges. The arguments of
the calls are made once per pass (`cascade_tables`). Windows, on the CPU alone, are cut into rectangles that all queries
read and squares at their edges, with masks. Sinks are merged in the end, by the log-sum-exps.

Shape letters: T packed tokens, S key/value slots, H query heads, K key/value heads, E head width, N spans or problems,
R key ranges.
"""

import functools
import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gram_fast.extension import _C
from gram_fast.kernels.tables import uploaded
from gram_fast.kernels.tree_attention import lowest_read

Merge = Callable[[Tensor, Tensor, Tensor, Tensor], None]
"""A function like `merge_states`."""
Range = Sequence[int]
"""Start and end."""


Square = tuple[int, int, int, int, Tensor | None]
"""Queries [start, end), slots [key start, key end), and a mask that is added to the scores, float32; None is causal."""


@dataclass(frozen=True)
class CpuCascade:
    """Arguments of the library calls of one pass on the CPU."""

    spans: list[tuple[int, int]]
    """Packed tokens [start, end) that attend causally to themselves."""
    blocks: list[tuple[int, int, int, int]]
    """Queries [start, end) that read slots [key start, key end) without a mask."""
    squares: list[Square] | None = None
    """With a window, what is read in place of the spans: packed tokens, in order, each piece on itself."""
    edges: Sequence[Square] = ()
    """With a window, what is read beside the blocks with a mask: every query reads some of the slots."""


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
    spans_N2: Tensor,
    range_offsets: Tensor,
    ranges_R2: Tensor,
    device: torch.device,
    window: int | None = None,
    is_chunked: bool = False,
) -> CpuCascade | CudaCascade:
    """Makes the arguments of the library calls from the tables of `tree_attention`, which are on the CPU.

    `window`, `is_chunked`: as of `lowest_read`, on the CPU alone.
    """
    spans = [(start, end) for start, end in spans_N2.tolist()]
    blocks = _C.attention_blocks(spans_N2.numpy(), range_offsets.numpy(), ranges_R2.numpy()).tolist()
    if window is not None:
        offsets, ranges = range_offsets.tolist(), ranges_R2.tolist()
        reads = [ranges[low:high] for low, high in itertools.pairwise(offsets)]
        return _windowed_cascade(spans, reads, window, is_chunked)
    if device.type == "cpu":
        return CpuCascade(spans, [(start, end, key_start, key_end) for _, start, end, key_start, key_end in blocks])
    return CudaCascade(VarlenProblems.of(spans, spans, device), varlen_ranks(blocks, device))


def _windowed_cascade(
    spans: list[tuple[int, int]], reads: Sequence[Sequence[Range]], window: int, is_chunked: bool
) -> CpuCascade:
    """The calls of pieces of at most _CHUNK queries.

    Of the path before a piece its queries read, from the lowest position of the first on, an edge, which fewer and
    fewer of them read, and then what all read.
    """
    squares: list[Square] = []
    blocks: list[tuple[int, int, int, int]] = []
    edges: list[Square] = []
    for (start, end), ranges in zip(spans, reads, strict=True):
        path = [*ranges, (start, end)]
        num_before = sum(_lengths(ranges))
        for begin in range(start, end, _CHUNK):
            stop = min(begin + _CHUNK, end)
            position = num_before + begin - start
            queries = torch.arange(position, position + stop - begin)
            low_T = lowest_read(queries, window, is_chunked)
            lowest, common = int(low_T[0]), min(int(low_T[-1]), position)
            mask = _added(low_T, queries, queries) if low_T[-1] > position else None
            squares.append((begin, stop, begin, stop, mask))
            for at, key_start, key_end in _pieces(path, lowest, common):
                keys = torch.arange(at, at + key_end - key_start)
                low_of_some_T = low_T[low_T <= keys[-1]]
                mask = _added(low_of_some_T, queries[: len(low_of_some_T)], keys)
                edges.append((begin, begin + len(low_of_some_T), key_start, key_end, mask))
            blocks += [(begin, stop, key_start, key_end) for _, key_start, key_end in _pieces(path, common, position)]
    return CpuCascade(spans, blocks, squares, edges)


def _pieces(path: Sequence[Range], low: int, high: int) -> Iterator[tuple[int, int, int]]:
    """Of a path, given as slots: its positions [low, high) as runs of slots, each with its first position."""
    at = 0
    for start, end in path:
        first, last = max(low, at), min(high, at + end - start)
        if first < last:
            yield first, start + first - at, start + last - at
        at += end - start


def _added(low_T: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """What is added to the scores of these positions: nothing where a query reads a key."""
    is_read = (keys >= low_T[:, None]) & (keys <= queries[:, None])
    return torch.zeros(is_read.shape).masked_fill(~is_read, float("-inf"))


def varlen_ranks(blocks: list[list[int]], device: torch.device) -> list[tuple[Tensor, Tensor, VarlenProblems]]:
    """The ranks of a CudaCascade from rows [rank, query start, query end, slot start, slot end]."""
    ranks = []
    for rank in range(blocks[-1][0] + 1 if blocks else 0):
        of_rank = [block for block in blocks if block[0] == rank]
        queries, keys = [block[1:3] for block in of_rank], [block[3:5] for block in of_rank]
        ranks.append((_indices(queries, device), _indices(keys, device), VarlenProblems.of(queries, keys, device)))
    return ranks


def cascade_attention(
    q_THE: Tensor,
    k_SKE: Tensor,
    v_SKE: Tensor,
    tables: CpuCascade | CudaCascade,
    scale: float,
    merge: Merge,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """`tree_attention` -> [T, H, E], contiguous. `merge`, as `merge_states`, merges partial results in float32."""
    attend = _attend_cpu if isinstance(tables, CpuCascade) else attend_cuda
    out_THE, lse_TH = attend(q_THE, k_SKE, v_SKE, tables, scale, merge)  # type: ignore[arg-type]
    if sinks_H is not None:
        out_THE = out_THE.float() * (lse_TH - sinks_H.float()).sigmoid()[..., None]
    return out_THE.to(q_THE.dtype).contiguous()


# The CPU flash kernel walks keys in blocks of 512 even where the causal mask hides most of one. Below 768 tokens, where
# its query blocks are 64 rows, chunks of queries with just the keys before them took 0.80 to 0.89 of the time (350 to
# 700 tokens, 6 heads of 64, two cores); from 768 on, with blocks of 256 rows, one call is faster.
_CHUNK = 192
_LARGE = 768


def _attend_cpu(
    q_THE: Tensor, k_SKE: Tensor, v_SKE: Tensor, tables: CpuCascade, scale: float, merge: Merge
) -> tuple[Tensor, Tensor]:
    """Results [T, H, E] in any dtype, and log-sum-exps float32 [T, H]."""
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
    for start, end, key_start, key_end, mask in tables.squares or ():
        parts.append(attend(start, end, key_start, key_end, is_causal=mask is None, mask=mask))
    for start, end in tables.spans if tables.squares is None else ():
        if not _CHUNK < end - start < _LARGE:
            parts.append(attend(start, end, start, end, is_causal=True))
            continue
        for begin in range(start, end, _CHUNK):
            stop = min(begin + _CHUNK, end)
            mask = _chunk_mask(q_THE.dtype)[: stop - begin, _LARGE - _CHUNK - (begin - start) :]
            parts.append(attend(begin, stop, start, stop, mask=mask[None, None, :, : stop - start]))
    if len(parts) == 1:
        out_THE, lse_TH = parts[0][0][0].transpose(0, 1), parts[0][1][0].transpose(0, 1)
    else:
        # In memory the kernel's results are [T, H, E].
        out_THE = torch.cat([out_1HTE.transpose(1, 2) for out_1HTE, _ in parts], dim=1)[0]
        lse_TH = torch.cat([lse_1HT.transpose(1, 2) for _, lse_1HT in parts], dim=1)[0]
    blocks = [*((*block, None) for block in tables.blocks), *tables.edges]
    if not blocks:
        return out_THE, lse_TH
    merged_THE, lse_TH = out_THE.float(), lse_TH.contiguous()
    for start, end, key_start, key_end, mask in blocks:
        out_1HTE, lse_1HT = attend(start, end, key_start, key_end, mask=mask)
        merge(merged_THE[start:end], lse_TH[start:end], out_1HTE[0].transpose(0, 1), lse_1HT[0].transpose(0, 1))
    return merged_THE, lse_TH


@functools.cache
def _chunk_mask(dtype: torch.dtype) -> Tensor:
    """Additive mask [_CHUNK, _LARGE] of the last chunk of _LARGE queries: each reads keys up to its own."""
    blocked = torch.full((_CHUNK, _LARGE), float("-inf"), dtype=dtype)
    return blocked.triu(_LARGE - _CHUNK + 1)


def attend_cuda(
    q_THE: Tensor, k_SKE: Tensor, v_SKE: Tensor, tables: CudaCascade, scale: float, merge: Merge
) -> tuple[Tensor, Tensor]:
    """`tree_attention` by variable-length attention -> float32 [T, H, E], and log-sum-exps float32 [T, H]."""
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
    return out_THE, lse_TH


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
