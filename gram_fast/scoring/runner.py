"""What the engine asks of a model: run one packed pass, say what it costs in memory and how long a sequence may be."""

from typing import Any, Protocol

import torch
from torch import Tensor

from gram_fast.scoring.key_values import KeyValueStore
from gram_fast.scoring.processes import Processes
from gram_fast.scoring.tree import TreePass


class Runner(Protocol):
    """Runs packed passes through one model on one device."""

    model: Any
    device: torch.device
    dtype: torch.dtype
    attention: str
    """The backend of its attention."""
    max_length: int
    """Most tokens of one sequence that it scores exactly."""
    max_length_reason: str
    """What sets that limit."""

    @property
    def processes(self) -> Processes:
        """Among which the model is divided."""

    @property
    def bytes_per_slot(self) -> int:
        """Memory of one token's keys and values."""

    @property
    def bytes_per_token(self) -> int:
        """Memory of one token's activations, at the most, while a pass runs."""

    def forward(self, tree_pass: TreePass, store: KeyValueStore) -> Tensor:
        """Label logits float32 [L, 2]; the pass's keys and values are in the store afterwards."""

    def plain_logits(self, input_ids: Tensor) -> Tensor:
        """Label logits [2], float32, of one sequence [T] without any of what `forward` adds: its yardstick."""
