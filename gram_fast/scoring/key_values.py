"""Stores one model's keys and values by slot: the current pass in slots [0, T), kept nodes after the token budget.

Shape letters: S slots, T packed tokens, K key/value heads, E head width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class KeyValueStore:
    """One key and one value buffer [S, K, E] per layer, allocated when the layer first writes."""

    def __init__(self) -> None:
        self.num_slots = 0
        """Number of slots of every buffer."""
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.layout = object()
        """Identity of the buffers: a new object whenever they may have moved."""

    def reserve(self, num_slots: int) -> None:
        """Grows the buffers to at least `num_slots` slots; existing slots keep their contents."""
        if num_slots <= self.num_slots:
            return
        for layer, buffers in self._layers.items():
            key, value = (_grown(buffer, num_slots) for buffer in buffers)
            self._layers[layer] = (key, value)
        self.num_slots = num_slots
        self.layout = object()

    def write(self, layer: int, k_TKE: Tensor, v_TKE: Tensor) -> tuple[Tensor, Tensor]:
        """Writes the keys and values of a pass to slots [0, T) -> the layer's buffers."""
        k_SKE, v_SKE = self.buffers(layer, k_TKE.shape[1:], k_TKE)
        k_SKE[: len(k_TKE)] = k_TKE
        v_SKE[: len(v_TKE)] = v_TKE
        return k_SKE, v_SKE

    def buffers(self, layer: int, of_slot: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's key and value buffers; on first use made with slots of shape `of_slot` [K, E] and like `like`."""
        if layer not in self._layers:
            size = (self.num_slots, *of_slot)
            self._layers[layer] = (like.new_empty(size), like.new_empty(size))
        return self._layers[layer]

    def copy(self, copies: list[tuple[int, int, int]]) -> None:
        """Copies (start, slot, length): slots [start, start + length) of the last pass to [slot, slot + length)."""
        for buffers in self._layers.values():
            for buffer in buffers:
                for start, slot, length in copies:
                    buffer[slot : slot + length] = buffer[start : start + length]

    def release(self) -> None:
        """Frees all buffers."""
        self.num_slots = 0
        self._layers.clear()
        self.layout = object()


def _grown(buffer: Tensor, num_slots: int) -> Tensor:
    grown = torch.empty((num_slots, *buffer.shape[1:]), dtype=buffer.dtype, device=buffer.device)
    grown[: len(buffer)] = buffer
    return grown
