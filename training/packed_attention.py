"""Differentiable attention over packed token trees, registered in transformers' attention interface.

Every token attends to its path in a forest of shared prefixes, the tail of a factored sequence to two paths; sequences
that share nothing are a forest of spans. Whatever a token reads is packed before it.

Shape letters: T packed tokens, N spans, R key ranges, H query heads, K key/value heads, E head width, U units,
B blocks.
"""

from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from gram_fast.errors import UnsupportedModelError
from gram_fast.models.supported import check_plain_attention
from gram_fast.ops import Spans, TreeTables, bind
from gram_fast.ops.tree_attention import attention_and_lse

PACKED_ATTENTION = "gram_fast_packed"

_CPU = torch.device("cpu")
# Tokens of a block of FlexAttention's mask: its default.
_BLOCK = 128


class Packing:
    """Layout of a packed batch, passed through the model's forward to every attention layer.

    Tables are the same in every layer and computed once. `layers_seen` records the layers that used it.
    """

    def __init__(self, spans_N2: Tensor, range_offsets: Tensor, ranges_R2: Tensor) -> None:
        """The tables of `gram_fast.ops.Spans`, on any device."""
        self._device = spans_N2.device
        self._spans = Spans(spans_N2.cpu(), range_offsets.cpu(), ranges_R2.cpu())
        self._tables: dict[int, TreeTables] = {}
        self.layers_seen: set[int] = set()

    @property
    def shares(self) -> bool:
        """Whether a token stands for several sequences."""
        return len(self._spans.ranges_R2) > 0

    def tables(self, group: int) -> TreeTables:
        """Tables of the ops in the extension; `group`: query heads per key/value head."""
        if group not in self._tables:
            self._tables[group] = TreeTables.of(self._spans, "extension", group, _CPU)
        return self._tables[group]

    @cached_property
    def offsets(self) -> tuple[Tensor, int]:
        """Ends of the spans behind a 0, int32 [N + 1], and the length of the longest span."""
        spans_N2 = self._spans.spans_N2
        ends = nn.functional.pad(spans_N2[:, 1], (1, 0)).to(self._device, torch.int32)
        return ends, int((spans_N2[:, 1] - spans_N2[:, 0]).max())

    @cached_property
    def block_mask(self) -> Any:
        """The mask for FlexAttention, made of blocks, never of [T, T] elements."""
        from torch.nn.attention.flex_attention import BlockMask

        unit_T, reads_UU = units_read(self._spans)
        partial_BB, full_BB = blocks_read(unit_T, reads_UU, _BLOCK)
        device_unit_T, device_reads_UU = unit_T.to(self._device), reads_UU.to(self._device)

        def is_read(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (query >= key) & device_reads_UU[device_unit_T[query], device_unit_T[key]]

        def listed(is_listed_BB: Tensor) -> tuple[Tensor, Tensor]:
            """Numbers of key blocks of each query block, and the blocks: these first, in order."""
            table = is_listed_BB.to(self._device, torch.int32)[None, None]
            return table.sum(-1, dtype=torch.int32), table.argsort(dim=-1, descending=True, stable=True).int()

        lengths = (len(unit_T), len(unit_T))
        return BlockMask.from_kv_blocks(
            *listed(partial_BB), *listed(full_BB), BLOCK_SIZE=_BLOCK, mask_mod=is_read, seq_lengths=lengths
        )


def units_read(spans: Spans) -> tuple[Tensor, Tensor]:
    """Cuts the packed tokens into units at all ends of spans and ranges -> int64 [T], bool [U, U].

    The first says in which unit a token lies, the second which units those of a unit read, as far as they stand before
    them: units of their span and of its ranges.
    """
    cuts = torch.cat([spans.spans_N2, spans.ranges_R2]).unique()  # type: ignore[no-untyped-call]
    # From 1 on: a table of a single row would have FlexAttention compiled once more.
    unit_T = torch.bucketize(torch.arange(spans.num_tokens), cuts, right=True)
    reads_UU = torch.zeros(len(cuts) + 1, len(cuts) + 1, dtype=torch.bool)
    spans_N2, ranges_R2 = (1 + torch.searchsorted(cuts, extents) for extents in (spans.spans_N2, spans.ranges_R2))
    offsets, ranges = spans.range_offsets.tolist(), ranges_R2.tolist()
    for index, (start, end) in enumerate(spans_N2.tolist()):
        for low, high in [*ranges[offsets[index] : offsets[index + 1]], (start, end)]:
            reads_UU[start:end, low:high] = True
    return unit_T, reads_UU


def blocks_read(unit_T: Tensor, reads_UU: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Key blocks that each query block reads in part, and those that all its queries read whole: bool [B, B].

    The arguments are those of `units_read`.
    """
    count, units = -(-len(unit_T) // size), len(reads_UU)
    cell_T = torch.arange(len(unit_T)) // size * units + unit_T
    # Numbers of tokens, in float64: products of integers are slow, and autocast leaves it alone.
    tokens_BU = torch.bincount(cell_T, minlength=count * units).view(count, units).double()
    read_BB = (tokens_BU @ reads_UU.double() @ tokens_BU.T).tril(-1)
    # The last block, if it is not full, is read in part: its queries that do not exist read nothing.
    full_BB = read_BB == size * size
    return ((read_BB > 0) | torch.eye(count, dtype=torch.bool)) & ~full_BB, full_BB


class _TreeAttention(torch.autograd.Function):
    """Attention of the extension on the CPU, with its backward.

    Against torch's flash kernel for the CPU, a sequence at a time: for 4 sequences of 700 tokens, 9 and 3 heads of
    width 64 in bfloat16, 55 ms of CPU time in place of 174.
    """

    @staticmethod
    def forward(ctx: Any, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor, tables: TreeTables, scale: float) -> Tensor:
        q_THE, k_TKE, v_TKE = map(_with_rows, (q_THE, k_TKE, v_TKE))
        out_THE, lse_TH = attention_and_lse(q_THE, k_TKE, v_TKE, tables, scale)
        ctx.save_for_backward(q_THE, k_TKE, v_TKE, out_THE, lse_TH)
        ctx.tables, ctx.scale = tables, scale
        return out_THE

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        differentiate = bind("tree_attention_backward", "extension")
        return *differentiate(_with_rows(grads[0]), *ctx.saved_tensors, ctx.tables, ctx.scale), None, None


def _with_rows(tensor: Tensor) -> Tensor:
    """The tensor, its last dimension contiguous as the extension wants it."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


@cache
def _flex_attention() -> Any:
    """FlexAttention, compiled once for batches of all lengths."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def packed_attention(q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor, packing: Packing, scale: float) -> Tensor:
    """Attention of every token to its path -> [T, H, E]; `scale` multiplies the scores.

    On the CPU by the extension. On CUDA by torch's variable-length attention where nothing is shared, in half
    precision, and by FlexAttention otherwise.
    """
    # Rotary embeddings may have left queries and keys in float32, under autocast.
    q_THE, k_TKE = q_THE.to(v_TKE.dtype), k_TKE.to(v_TKE.dtype)
    group = q_THE.shape[1] // k_TKE.shape[1]
    if q_THE.device.type == "cpu":
        attend: Any = _TreeAttention.apply
        out: Tensor = attend(q_THE, k_TKE, v_TKE, packing.tables(group), scale)
        return out
    if packing.shares or v_TKE.dtype == torch.float32:
        q_1HTE, k_1KTE, v_1KTE = (x.transpose(0, 1)[None] for x in (q_THE, k_TKE, v_TKE))
        out_1HTE: Tensor = _flex_attention()(
            q_1HTE, k_1KTE, v_1KTE, block_mask=packing.block_mask, scale=scale, enable_gqa=True
        )
        return out_1HTE[0].transpose(0, 1)
    from torch.nn.attention.varlen import varlen_attn

    k_THE, v_THE = (x.repeat_interleave(group, dim=1) for x in (k_TKE, v_TKE))
    ends, longest = packing.offsets
    return torch.as_tensor(
        varlen_attn(q_THE, k_THE, v_THE, ends, ends, longest, longest, scale=scale, window_size=(-1, 0))
    )


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    packing: Packing | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention function for transformers: [1, H, T, E] queries, [1, K, T, E] keys and values -> [1, T, H, E]."""
    if packing is None:
        raise UnsupportedModelError(f"{type(module).__name__} does not hand its keyword arguments on to attention")
    check_plain_attention(module, key, value, options)
    packing.layers_seen.add(module.layer_idx)  # type: ignore[arg-type]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q_THE, k_TKE, v_TKE = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return packed_attention(q_THE, k_TKE, v_TKE, packing, scale)[None], None


# In a compiled model it is called as it is: the extension is no graph, and FlexAttention compiles itself.
AttentionInterface.register(PACKED_ATTENTION, torch.compiler.disable(_attend))  # type: ignore[no-untyped-call]
AttentionMaskInterface.register(PACKED_ATTENTION, lambda *args, **options: None)
