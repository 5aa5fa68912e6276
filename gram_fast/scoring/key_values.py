"""Stores one model's keys and values by slot: the current pass in slots [0, T), kept nodes after the token budget.

Of a model with states, those of kept nodes are beside them (states.py).

Shape letters: S slots, T packed tokens, N layers of a block, K key/value heads, E head width, R copied slots.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gram_fast.devices import last_used_here
from gram_fast.kernels.tables import uploaded
from gram_fast.scoring.states import StateStore

# Layers of a block, at most. Growing holds one block twice, and a copy on a GPU holds its rows of one block a second
# time: those of four layers, 8 K E numbers a token, are fewer than the activations that the pass has just given back
# (4 widths and 3 feed-forward widths), also where every head has its own keys and values.
_LAYERS = 4


class KeyValueStore:
    """One key and one value buffer [S, K, E] per layer, allocated when the layer first writes, in blocks of layers.

    Slots nobody wrote hold zeros, since a kernel may load and mask them.
    """

    def __init__(self) -> None:
        self.num_slots = 0
        """Number of slots of every buffer."""
        self._blocks: list[tuple[tuple[int, ...], Tensor]] = []
        """Numbers of layers, and their keys and values [N, 2, S, K, E]."""
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}
        """Views of the blocks, by layer."""
        self.layout = object()
        """Identity of the buffers: a new object whenever they may have moved."""
        self.states = StateStore()
        """States at the ends of kept nodes; empty for a model without."""

    def reserve(self, num_slots: int) -> None:
        """Grows the buffers to at least `num_slots` slots; existing slots keep their contents."""
        if num_slots <= self.num_slots:
            return
        # Before the blocks: a view would keep the old memory.
        self._buffers.clear()
        for number, (layers, block) in enumerate(self._blocks):
            self._blocks[number] = (layers, _grown(block, num_slots))
        for layers, block in self._blocks:
            self._buffers.update(_views(layers, block))
        self.num_slots = num_slots
        self.layout = object()

    def write(self, layer: int, k_TKE: Tensor, v_TKE: Tensor) -> tuple[Tensor, Tensor]:
        """Writes the keys and values of a pass to slots [0, T) -> the layer's buffers."""
        ((k_SKE, v_SKE),) = self.buffers((layer,), k_TKE.shape[1:], k_TKE)
        k_SKE[: len(k_TKE)] = k_TKE
        v_SKE[: len(v_TKE)] = v_TKE
        return k_SKE, v_SKE

    def buffers(self, layers: Sequence[int], of_slot: Sequence[int], like: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Key and value buffers of layers.

        Those that are asked for the first time are made together, with slots of shape `of_slot` [K, E] and like `like`.
        """
        new = [layer for layer in layers if layer not in self._buffers]
        for first in range(0, len(new), _LAYERS):
            some = tuple(new[first : first + _LAYERS])
            block = like.new_zeros((len(some), 2, self.num_slots, *of_slot))
            self._blocks.append((some, block))
            self._buffers.update(_views(some, block))
        return [self._buffers[layer] for layer in layers]

    def copy(self, copies: NDArray[np.int64]) -> None:
        """Copies slots of the last pass to others, in all layers.

        `copies`: rows of (start, slot, length), int64 [C, 3]: slots [start, start + length) go to [slot, slot +
        length). No slot that is written is read.
        """
        rows_of: dict[torch.device, Tensor] = {}
        for _, block in self._blocks if len(copies) else ():
            device = block.device
            if device.type == "cpu":
                _copy_runs(block, copies)
                continue
            if device not in rows_of:
                rows_of[device] = uploaded(_rows(copies), device)
            _copy_rows(block, rows_of[device])

    def release(self) -> None:
        """Frees all buffers, those of states too."""
        self.states.release()
        self.num_slots = 0
        self._blocks.clear()
        self._buffers.clear()
        self.layout = object()


def _views(layers: Sequence[int], block: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
    return {layer: (buffers[0], buffers[1]) for layer, buffers in zip(layers, block, strict=True)}


def _grown(block: Tensor, num_slots: int) -> Tensor:
    layers, two, old_slots, *of_slot = block.shape
    grown = block.new_zeros((layers, two, num_slots, *of_slot))
    grown[:, :, :old_slots] = block
    last_used_here(block)
    return grown


def _copy_runs(block: Tensor, copies: NDArray[np.int64]) -> None:
    """Copies run by run: on a CPU a run is copied up to five times as fast as rows that are looked up."""
    for start, slot, length in copies.tolist():
        block[:, :, slot : slot + length] = block[:, :, start : start + length]


def _copy_rows(block: Tensor, rows_2R: Tensor) -> None:
    """Copies all rows in two launches: a run is too small to be worth a launch of its own."""
    words = _words(block)
    words.index_copy_(2, rows_2R[1], words.index_select(2, rows_2R[0]))


def _words(block: Tensor) -> Tensor:
    """A view of the block whose last dimension are words of eight bytes where a slot's bytes are a multiple.

    An index kernel moves an element a thread, whatever its size.
    """
    flat = block.flatten(3)
    return flat if flat.shape[-1] * flat.itemsize % 8 else flat.view(torch.int64)


def _rows(copies: NDArray[np.int64]) -> Tensor:
    """Slots that are read and slots that are written, int64 [2, R]."""
    start_C, slot_C, length_C = copies.T
    of_run_R = np.repeat(np.arange(len(copies)), length_C)
    within_R = np.arange(len(of_run_R)) - np.repeat(np.cumsum(length_C) - length_C, length_C)
    return torch.from_numpy(np.stack([start_C[of_run_R], slot_C[of_run_R]]) + within_R)
