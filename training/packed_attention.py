"""Differentiable causal attention over packed sequences, registered in transformers' attention interface.

Shape letters: T packed tokens, S sequences, L length of the longest one, H query heads, K key/value heads, E head
width, G query heads per key/value head.
"""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

from gram_fast.errors import UnsupportedModelError
from gram_fast.models.supported import check_plain_attention

PACKED_ATTENTION = "gram_fast_packed"

# Up to this length, sequences are padded on the CPU and scores are dense products: torch's CPU flash kernel with its
# backward took four times as long for 64 sequences of 100 tokens, 4 heads of width 64, in bfloat16 (40 ms against 11
# on 2 cores).
_LONGEST_DENSE = 256


class Packing:
    """Layout of the sequences of a packed batch, passed through the model's forward to every attention layer.

    Index tables are the same in every layer and computed once, on the device of `lengths`. `layers_seen` records the
    layers that used it.
    """

    def __init__(self, lengths: Tensor) -> None:
        """`lengths` is an integer tensor [S]."""
        self.lengths: list[int] = lengths.tolist()
        self.longest = max(self.lengths)
        self.offsets = nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
        self.layers_seen: set[int] = set()

    @cached_property
    def is_real_SL(self) -> Tensor:  # noqa: N802
        """bool [S, L]: whether a position of the padded batch holds a token of its sequence."""
        return self._position_L < self.offsets.diff()[:, None]

    @cached_property
    def rows_SL(self) -> Tensor:  # noqa: N802
        """[S, L]: packed index of every padded position; padding refers to tokens of the next sequence."""
        return (self.offsets[:-1, None] + self._position_L).clamp(max=sum(self.lengths) - 1)

    @cached_property
    def hidden_LL(self) -> Tensor:  # noqa: N802
        """float32 [L, L]: causal mask, -inf where the key comes after the query, else 0."""
        return torch.full((self.longest, self.longest), float("-inf"), device=self.offsets.device).triu(1)

    @property
    def _position_L(self) -> Tensor:  # noqa: N802
        return torch.arange(self.longest, device=self.offsets.device)


def packed_attention(q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor, packing: Packing, scale: float) -> Tensor:
    """Causal attention within each sequence -> [T, H, E].

    On CUDA in half precision this is torch's variable-length attention; otherwise sequences are padded if short, or
    attended one by one. `scale` multiplies the scores.
    """
    if q_THE.is_cuda and v_TKE.dtype in (torch.float16, torch.bfloat16):
        from torch.nn.attention.varlen import varlen_attn

        group = q_THE.shape[1] // k_TKE.shape[1]
        return torch.as_tensor(
            varlen_attn(
                q_THE.to(v_TKE.dtype),
                k_TKE.to(v_TKE.dtype).repeat_interleave(group, dim=1),
                v_TKE.repeat_interleave(group, dim=1),
                packing.offsets,
                packing.offsets,
                packing.longest,
                packing.longest,
                scale=scale,
                window_size=(-1, 0),
            )
        )
    if packing.longest <= _LONGEST_DENSE:
        return _padded_attention(q_THE, k_TKE, v_TKE, packing, scale)
    q_HTE, k_KTE, v_KTE = (tensor.transpose(0, 1) for tensor in (q_THE, k_TKE, v_TKE))
    out = [
        scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, scale=scale, enable_gqa=True)[0]
        for q, k, v in zip(*(torch.split(x, packing.lengths, dim=1) for x in (q_HTE, k_KTE, v_KTE)), strict=True)
    ]
    return torch.cat(out, dim=1).transpose(0, 1)


def _padded_attention(q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor, packing: Packing, scale: float) -> Tensor:
    rows_SL = packing.rows_SL
    group = q_THE.shape[1] // k_TKE.shape[1]
    # Padding holds tokens of the next sequence: the causal mask hides them from every token that is kept.
    q_SKGLE = q_THE.reshape(len(q_THE), -1, group, q_THE.shape[-1])[rows_SL].permute(0, 2, 3, 1, 4)
    k_SK1EL = k_TKE[rows_SL].permute(0, 2, 3, 1)[:, :, None]
    v_SK1LE = v_TKE[rows_SL].transpose(1, 2)[:, :, None]
    scores = torch.matmul(q_SKGLE * scale, k_SK1EL) + packing.hidden_LL
    out_SKGLE = torch.matmul(scores.softmax(-1).to(v_SK1LE.dtype), v_SK1LE)
    return out_SKGLE.permute(0, 3, 1, 2, 4).flatten(2, 3)[packing.is_real_SL]


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


AttentionInterface.register(PACKED_ATTENTION, _attend)
AttentionMaskInterface.register(PACKED_ATTENTION, lambda *args, **options: None)
