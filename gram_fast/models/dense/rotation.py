"""Cosines and sines of rotary embeddings by position, computed once for all passes.

Shape letters: T packed tokens, P positions known so far, F half of the head width.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

# Positions are computed in blocks of this size: torch's cosine on a CPU gives the last elements of a tensor other bits
# than its vectors do, so a position must always stand in the same place of the same shape.
_BLOCK = 1024


class RotationTable:
    """Grows with the longest path seen. Values are those of transformers' own embedding, whichever variant it is."""

    def __init__(self, config: Any, max_length: int, device: torch.device) -> None:
        """`config`: the checkpoint's; `max_length`: positions from there on are never asked for."""
        self._rotary = LlamaRotaryEmbedding(config).to(device)
        self._last = max_length - 1
        self._cos_PF = self._sin_PF = torch.empty(0, 0, device=device)

    def grow(self, num_positions: int) -> None:
        """Makes positions [0, num_positions) known."""
        known = len(self._cos_PF)
        if num_positions <= known:
            return
        blocks = range(known, num_positions, _BLOCK)
        parts = [self._block(start) for start in blocks]
        cosines, sines = zip(*parts, strict=True)
        kept = ([self._cos_PF], [self._sin_PF]) if known else ([], [])
        self._cos_PF, self._sin_PF = torch.cat([*kept[0], *cosines]), torch.cat([*kept[1], *sines])

    @property
    def num_positions(self) -> int:
        """Positions known so far. When it changes, what `of` read lies elsewhere."""
        return len(self._cos_PF)

    def of(self, position_ids_T: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, float32 [T, F], of known positions, int64 [T]."""
        return self._cos_PF[position_ids_T], self._sin_PF[position_ids_T]

    def _block(self, start: int) -> tuple[Tensor, Tensor]:
        device = self._cos_PF.device
        # Embeddings that change with the length must not see a position beyond the limit, though nobody asks for it.
        positions_1P = torch.arange(start, start + _BLOCK, device=device).clamp(max=self._last)[None]
        cos_1PE, sin_1PE = self._rotary(torch.empty(0, device=device, dtype=torch.float32), positions_1P)
        half = cos_1PE.shape[-1] // 2
        return cos_1PE[0, :, :half].contiguous(), sin_1PE[0, :, :half].contiguous()
