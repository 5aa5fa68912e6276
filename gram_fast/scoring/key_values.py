"""Keys and values of one model, by slot: the pass at hand in slots [0, T), kept nodes behind the token budget.

Shape letters: S slots, T packed tokens, K key/value heads, E head width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class KeyValueStore:
    """One key and one value buffer [S, K, E] a layer, allocated when the layer first writes."""

    def __init__(self) -> None:
        self.num_slots = 0
        """Slots of every buffer."""
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self.layout = object()
        """A new object whenever room is made or given back: until then, buffers that were read or written stay."""

    def reserve(self, num_slots: int) -> None:
        """Makes room for at least `num_slots` slots; what is in the others stays."""
        if num_slots <= self.num_slots:
            return
        for layer, buffers in self._layers.items():
            key, value = (_grown(buffer, num_slots) for buffer in buffers)
            self._layers[layer] = (key, value)
        self.num_slots = num_slots
        self.layout = object()

    def write(self, layer: int, k_TKE: Tensor, v_TKE: Tensor) -> tuple[Tensor, Tensor]:
        """Puts the keys and values of a pass into slots [0, T) and returns the layer's buffers."""
        k_SKE, v_SKE = self.buffers(layer, k_TKE.shape[1:], k_TKE)
        k_SKE[: len(k_TKE)] = k_TKE
        v_SKE[: len(v_TKE)] = v_TKE
        return k_SKE, v_SKE

    def buffers(self, layer: int, of_slot: Sequence[int], like: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's buffers; new ones have slots [K, E] of shape `of_slot` and dtype and device as `like`."""
        if layer not in self._layers:
            size = (self.num_slots, *of_slot)
            self._layers[layer] = (like.new_empty(size), like.new_empty(size))
        return self._layers[layer]

    def keep(self, copies: list[tuple[int, int, int]]) -> None:
        """Copies (start, slot, length): slots [start, start + length) of the last pass to [slot, slot + length)."""
        for buffers in self._layers.values():
            for buffer in buffers:
                for start, slot, length in copies:
                    buffer[slot : slot + length] = buffer[start : start + length]

    def release(self) -> None:
        """Gives all memory back."""
        self.num_slots = 0
        self._layers.clear()
        self.layout = object()


def _grown(buffer: Tensor, num_slots: int) -> Tensor:
    grown = torch.empty((num_slots, *buffer.shape[1:]), dtype=buffer.dtype, device=buffer.device)
    grown[: len(buffer)] = buffer
    return grown
