"""Stores the states of layers that are no attention: what they know at the end of a kept node.

Shape letters: S slots of states.
"""

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from gram_fast.devices import last_used_here


class StateStore:
    """One buffer [S + 1, ...] for each kind of state of each layer, allocated when the layer first asks for it.

    The last row is the state before any token, zeros, so that slot -1 stands for it.
    """

    def __init__(self) -> None:
        self.num_states = 0
        """Slots of every buffer."""
        self._buffers: dict[Hashable, Tensor] = {}

    def reserve(self, num_states: int) -> None:
        """Grows the buffers to at least `num_states` slots; existing slots keep their contents."""
        if num_states <= self.num_states:
            return
        self.num_states = num_states
        for key, buffer in self._buffers.items():
            self._buffers[key] = self._grown(buffer)
            last_used_here(buffer)

    def buffer(self, key: Hashable, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """The buffer [S + 1, *shape] of that kind of state; one that is asked for the first time holds zeros."""
        if key not in self._buffers:
            self._buffers[key] = torch.zeros((self.num_states + 1, *shape), dtype=dtype, device=device)
        return self._buffers[key]

    @property
    def bytes_per_state(self) -> int:
        """Bytes of one slot of all buffers that there are."""
        return sum(buffer[0].nbytes for buffer in self._buffers.values())

    def release(self) -> None:
        """Frees all buffers."""
        self.num_states = 0
        self._buffers.clear()

    def _grown(self, buffer: Tensor) -> Tensor:
        grown = buffer.new_zeros((self.num_states + 1, *buffer.shape[1:]))
        grown[: len(buffer) - 1] = buffer[:-1]
        return grown
