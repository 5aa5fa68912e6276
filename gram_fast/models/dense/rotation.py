"""Table of the cosines and sines of rotary embeddings by position, computed once for all passes.

Shape letters: T packed tokens, P positions known so far, F half of the head width.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from gram_fast.devices import last_used_here

# Positions are computed in blocks of this size. torch's CPU cosine gives the last elements of a tensor other bits than
# the vectorised ones, so a position must always have the same place in the same shape.
_BLOCK = 1024


class RotationTable:
    """Cosines and sines of the positions seen so far, computed by transformers' own rotary embedding of any variant."""

    def __init__(self, config: Any, max_length: int, device: torch.device) -> None:
        """`config`: configuration of the checkpoint; `max_length`: all positions are below."""
        self._rotary = LlamaRotaryEmbedding(config).to(device)
        self._last = max_length - 1
        self._device = device
        self._tables: tuple[Tensor, Tensor] | None = None
        """Cosines and sines, float32 [P, F] each; one attribute, so that no interruption leaves one of them behind."""

    def grow(self, num_positions: int) -> None:
        """Extends the table to positions [0, num_positions) at least."""
        known = self.num_positions
        if num_positions <= known:
            return
        parts = [self._block(start) for start in range(known, num_positions, _BLOCK)]
        cosines, sines = zip(*([self._tables] if self._tables else []), *parts, strict=True)
        before, self._tables = self._tables or (), (torch.cat(cosines), torch.cat(sines))
        last_used_here(*before)

    @property
    def num_positions(self) -> int:
        """Positions in the table. When it changes, the table has moved in memory."""
        return len(self._tables[0]) if self._tables else 0

    def of(self, position_ids_T: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, float32 [T, F], of positions in the table, int64 [T]."""
        assert self._tables is not None
        cos_PF, sin_PF = self._tables
        return cos_PF[position_ids_T], sin_PF[position_ids_T]

    def _block(self, start: int) -> tuple[Tensor, Tensor]:
        device = self._device
        # Embeddings that change with the length must not see a position beyond the limit, even an unused one.
        positions_1P = torch.arange(start, start + _BLOCK, device=device).clamp(max=self._last)[None]
        cos_1PE, sin_1PE = self._rotary(torch.empty(0, device=device, dtype=torch.float32), positions_1P)
        half = cos_1PE.shape[-1] // 2
        return cos_1PE[0, :, :half].contiguous(), sin_1PE[0, :, :half].contiguous()
