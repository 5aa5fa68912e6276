"""What one mixer has in one pass: the pieces, and where its states are kept."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gram_fast.models.linear.pieces import Pieces
from gram_fast.scoring.states import StateStore


@dataclass
class Mixing:
    """One mixer in one pass."""

    pieces: Pieces
    states: StateStore
    mixer: int
    """Number of the mixer."""
    num_calls: int = 0
    """Functions that it has called: the next one's states are its own."""

    def buffer(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Kept states of the function that is called, [S + 1, *shape]."""
        self.num_calls += 1
        return self.states.buffer((self.mixer, self.num_calls), shape, dtype, device)
