"""What functions over the pieces of a pass look up: made once a pass, the same for all of its layers.

Shape letters: T packed tokens, P pieces, N pieces of a batch, R their tokens, L their padded length, W inputs before a
piece, M kept states that are read or written.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gram_fast.kernels.tables import uploaded

# Most pieces of a batch. Each has a state before and a state behind it, 2 MiB in a layer of Qwen3-Next.
_MOST_PIECES = 128


@dataclass(frozen=True)
class Batch:
    """Pieces of one level that are scanned together."""

    is_first: bool
    """Whether they start from kept states, as those of level 0, or else from the ends of other pieces."""
    starts: Tensor
    """Slots of kept states, or numbers of ends, that they start from, int64 [N]."""
    rows: Tensor
    """Packed rows of their tokens, int64 [R]."""
    places: Tensor
    """Where these are in the padded batch [N * L], int64 [R]."""
    offsets: Tensor
    """First of these rows of each piece, and R, int64 [N + 1]."""
    padded: tuple[int, int]
    """N and L."""
    ended: Tensor
    """Pieces of the batch whose ends others start from, or are kept, int64."""
    ends: Tensor
    """Numbers of these ends, int64."""

    def pad(self, x_1T: Tensor) -> Tensor:
        """Takes the batch's tokens out of packed ones [1, T, ...] -> [N, L, ...], with zeros behind each piece."""
        rows = x_1T[0].index_select(0, self.rows)
        count, length = self.padded
        if len(rows) < count * length:
            rows = rows.new_zeros((count * length, *rows.shape[1:])).index_copy_(0, self.places, rows)
        return rows.view(count, length, *rows.shape[1:])

    def unpad(self, x_NL: Tensor) -> Tensor:
        """The batch's tokens [R, ...] of a padded result [N, L, ...]."""
        rows = x_NL.flatten(0, 1)
        return rows if len(rows) == len(self.rows) else rows.index_select(0, self.places)


@dataclass(frozen=True)
class Windows:
    """Every piece with the W inputs before it, by index into a bank: packed inputs [T], then M times W kept ones."""

    read: Tensor
    """Slots of the kept inputs, int64 [M]."""
    inputs: Tensor
    """The bank's rows in order: of each piece the W before it, then its own, int64 [T + P * W]."""
    own: Tensor
    """Which of these are the pieces' own, int64 [T]."""
    written: Tensor
    """Slots that inputs are kept in, int64."""
    kept: Tensor
    """The bank's rows that are kept in each, int64 [number, W]."""


class Pieces:
    """The pieces of a pass."""

    def __init__(self, table: NDArray[np.int64]) -> None:
        """`table`: their rows, int64 [P, 6] (TreePass.pieces)."""
        self.table = table
        # By what they were asked for with.
        self._batches: dict[tuple[int, int, torch.device], list[Batch]] = {}
        self._windows: dict[tuple[int, torch.device], Windows] = {}
        self._kept_ends: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @cached_property
    def _end_numbers(self) -> NDArray[np.int64]:
        """Of each piece the number of its end where something needs that, else -1, int64 [P]."""
        parents, to = self.table[:, 3], self.table[:, 5]
        needed = to >= 0
        needed[parents[parents >= 0]] = True
        return np.where(needed, np.cumsum(needed) - 1, -1)

    @property
    def num_ends(self) -> int:
        """Number of ends that are needed: kept, or started from within the pass."""
        return int(self._end_numbers.max(initial=-1)) + 1

    def kept_ends(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Slots of states to be kept, and the numbers of the ends that they are, int64 [M] each."""
        if device not in self._kept_ends:
            kept = self.table[:, 5] >= 0
            slots, numbers = map(torch.from_numpy, (self.table[kept, 5], self._end_numbers[kept]))
            self._kept_ends[device] = uploaded(slots, device), uploaded(numbers, device)
        return self._kept_ends[device]

    def batches(self, shortest: int, chunk: int, device: torch.device) -> list[Batch]:
        """Batches of pieces in an order in which each comes after what it starts from.

        Those of a batch are padded to the same length: a power of two from `shortest` to `chunk`, or a multiple of
        `chunk`.
        """
        key = shortest, chunk, device
        if key not in self._batches:
            self._batches[key] = [_on(batch, device) for batch in self._make_batches(shortest, chunk)]
        return self._batches[key]

    def windows(self, width: int, device: torch.device) -> Windows:
        """Each piece with the `width` inputs before it."""
        key = width, device
        if key not in self._windows:
            self._windows[key] = _on(self._make_windows(width), device)
        return self._windows[key]

    def _make_batches(self, shortest: int, chunk: int) -> Iterator[Batch]:
        start, end, level = self.table[:, :3].T
        to_length = padded_lengths(end - start, shortest, chunk)
        order = np.lexsort((to_length, level))
        cuts = np.flatnonzero(np.diff(level[order]) | np.diff(to_length[order])) + 1
        for group in np.split(order, cuts):
            for first in range(0, len(group), _MOST_PIECES):
                pieces = group[first : first + _MOST_PIECES]
                yield self._make_batch(pieces, int(to_length[pieces[0]]))

    def _make_batch(self, pieces: NDArray[np.int64], length: int) -> Batch:
        start, end, level, parent, kept, _ = self.table[pieces].T
        offsets = np.concatenate([[0], np.cumsum(end - start)])
        of_piece = np.repeat(np.arange(len(pieces)), end - start)
        within = np.arange(offsets[-1]) - offsets[of_piece]
        ends = self._end_numbers[pieces]
        is_first = bool(level[0] == 0)
        return Batch(
            is_first=is_first,
            starts=torch.from_numpy(kept if is_first else self._end_numbers[parent]),
            rows=torch.from_numpy(start[of_piece] + within),
            places=torch.from_numpy(of_piece * length + within),
            offsets=torch.from_numpy(offsets),
            padded=(len(pieces), length),
            ended=torch.from_numpy(np.flatnonzero(ends >= 0)),
            ends=torch.from_numpy(ends[ends >= 0]),
        )

    def _make_windows(self, width: int) -> Windows:
        start, end, level, parent, kept, to = self.table.T
        num_tokens = int(end[-1])
        firsts = np.flatnonzero(level == 0)
        before = np.empty((len(start), width), np.int64)
        last = np.empty((len(start), width), np.int64)
        for number in range(int(level.max()) + 1):
            its = np.flatnonzero(level == number)
            if number:
                before[its] = last[parent[its]]
            else:
                before[its] = num_tokens + np.arange(len(its) * width).reshape(-1, width)
            # The last inputs of a piece that is shorter are the last ones before it too.
            from_start = (end - start)[its, None] + np.arange(-width, 0)
            earlier = np.take_along_axis(before[its], np.clip(width + from_start, 0, width - 1), axis=1)
            last[its] = np.where(from_start >= 0, start[its, None] + from_start, earlier)
        own = np.arange(num_tokens) + width * (np.repeat(np.arange(len(start)), end - start) + 1)
        inputs = np.empty(num_tokens + width * len(start), np.int64)
        inputs[own] = np.arange(num_tokens)
        inputs[(start + width * np.arange(len(start)))[:, None] + np.arange(width)] = before
        tensors = (kept[firsts], inputs, own, to[to >= 0], last[to >= 0])
        return Windows(*map(torch.from_numpy, tensors))


def padded_lengths(lengths: NDArray[np.int64], shortest: int, chunk: int) -> NDArray[np.int64]:
    """The next power of two from `shortest` to `chunk`, or the next multiple of `chunk`; all three powers of two."""
    powers = 2 ** np.ceil(np.log2(np.maximum(lengths, shortest))).astype(np.int64)
    return np.where(powers < chunk, powers, -(-lengths // chunk) * chunk)


_Tables = TypeVar("_Tables", Batch, Windows)


def _on(tables: _Tables, device: torch.device) -> _Tables:
    tensors = {f.name: x for f in fields(tables) if isinstance(x := getattr(tables, f.name), Tensor)}
    moved: dict[str, Any] = {name: uploaded(x, device) for name, x in tensors.items()}
    return replace(tables, **moved)
