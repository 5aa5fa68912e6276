"""Tables of integers that attention reads: checked and made once per pass, then trusted in every layer.

Shape letters: T packed tokens, S key/value slots, N spans, R key ranges, L leaves, X tiles, P slots of all paths.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gram_fast.errors import BackendError
from gram_fast.extension import _C
from gram_fast.kernels.tables import PATH_TILE_COLUMNS, TILE_ROWS, filled_up, path_tile_tokens, uploaded
from gram_fast.kernels.tree_attention_cascade import CpuCascade, CudaCascade, cascade_tables
from gram_fast.ops.backends import cascade_problem
from gram_fast.ops.checks import Sizes, expect

Integers = NDArray[np.int64]
CPU = torch.device("cpu")
MAX_SLOTS = 2**31 - 1
"""Most key/value slots that the 32-bit integers of the tables can count."""


class Window(NamedTuple):
    """Which of the tokens before it on its path a token reads. Positions are counted from the root of the path.

    A token at position p reads those from max(0, p - size + 1) on up to itself, `size` in all (a sliding window); where
    windows are chunked, those from p // size * size on.
    """

    size: int
    """Tokens, at least 1."""
    is_chunked: bool = False

    @classmethod
    def of(cls, size: int | None, is_chunked: bool) -> "Window | None":
        """That of the arguments of an op: none where there is no size. Raises ValueError on a size below 1."""
        expect(size is not None or not is_chunked, "window", "a number of tokens for chunks", size)
        return None if size is None else cls(size, is_chunked).check()

    def check(self) -> "Window":
        """Raises ValueError on a size below 1; returns itself."""
        expect(self.size >= 1, "window", "at least 1 token", self.size)
        return self


class Spans(NamedTuple):
    """Slots that the packed tokens of a pass read, as int64 tensors on the CPU.

    The tokens of a span read each other causally, and the slots of the span's ranges without a mask.
    """

    spans_N2: Tensor
    """[N, 2]: start, end; they cover [0, T) in order."""
    range_offsets: Tensor
    """[N + 1]: rows of `ranges_R2` that each span reads."""
    ranges_R2: Tensor
    """[R, 2]: slots [start, end). The ranges of one span are disjoint, from the root of its path down."""

    @property
    def num_tokens(self) -> int:
        """T, the end of the last span."""
        return int(self.spans_N2[-1, 1]) if len(self.spans_N2) else 0

    @property
    def arrays(self) -> tuple[Integers, Integers, Integers]:
        """The three tables as NumPy arrays that share their memory."""
        return self.spans_N2.numpy(), self.range_offsets.numpy(), self.ranges_R2.numpy()

    def check(self, num_slots: int, num_tokens: int | None = None) -> "Spans":
        """Raises ValueError unless the spans cover [0, T) in order and their ranges lie in the slots; returns itself.

        `num_tokens`: T, where the caller knows it; otherwise the end of the last span.
        """
        sizes = Sizes(CPU)
        sizes.check((torch.int64,), spans_N2=self.spans_N2, ranges_R2=self.ranges_R2)
        offsets, shape = self.range_offsets, (sizes["N"] + 1,)
        expect(offsets.dtype == torch.int64, "range_offsets", str(torch.int64), offsets.dtype)
        expect(offsets.device == CPU, "range_offsets", f"device {CPU}", offsets.device)
        expect(offsets.shape == shape, "range_offsets", f"shape {shape}", tuple(offsets.shape))
        expect(offsets.is_contiguous(), "range_offsets", "a contiguous tensor", f"stride {offsets.stride()}")
        _C.check_spans(*self.arrays, num_slots, self.num_tokens if num_tokens is None else num_tokens)
        return self


@dataclass(frozen=True)
class TreeTables:
    """Tables of `tree_attention`: the spans, and what the backend reads in place of them."""

    spans: Spans
    tiles: Tensor | None = None
    """For "triton" and "extension": int32 [X, columns] on the device, a row a tile (gram_fast::attention_tiles)."""
    cascade: CpuCascade | CudaCascade | None = None
    """For "cascade": the library calls."""
    window: Window | None = None
    """What is left of the paths that the spans describe; None: all of them."""

    @classmethod
    def of(
        cls,
        spans: Spans,
        backend: str,
        group: int,
        device: torch.device,
        at_least: tuple[int, int] = (0, 0),
        window: Window | None = None,
    ) -> "TreeTables":
        """Makes the tables of a pass for one backend of `tree_attention`.

        Args:
            spans: spans of the pass.
            backend: one of BACKENDS["tree_attention"].
            group: query heads per key/value head; 1 to 128 for "triton", or ValueError is raised.
            device: device of the layers. The host does not wait for copies to it.
            at_least: fewest rows and columns of `tiles`, filled up with empty tiles and zeros: passes of one bucket
                have tables of one shape.
            window: what each token reads of its path; by default all of it.

        Raises ValueError on spans that are not those of a pass, except for "reference", which has no tables: the ops
        check its spans; and on a window of no tokens. Raises BackendError on a window for "cascade" on CUDA. That the
        keys and values have the slots which they name is the caller's to know.
        """
        size, is_chunked = window.check() if window else (None, False)
        if backend == "cascade" and (problem := cascade_problem(device, window is not None, False)):
            raise BackendError(problem)
        if backend == "triton":
            check_group(group)
        if backend in ("triton", "extension"):
            table = _C.attention_tiles(*spans.arrays, max(TILE_ROWS // group, 1), at_least[0], size, is_chunked)
            return cls(spans, tiles=_filled_up(table, at_least[1], device), window=window)
        if backend == "cascade":
            return cls(spans, cascade=cascade_tables(*spans, device, size, is_chunked), window=window)
        return cls(spans, window=window)

    def on(self, device: torch.device) -> "TreeTables":
        """The tables with their tiles copied to `device`; the host does not wait."""
        return self if self.tiles is None else replace(self, tiles=uploaded(self.tiles, device))


@dataclass(frozen=True)
class LeafTables:
    """Tables of `leaf_attention`."""

    spans: Spans
    leaf_rows_L: Tensor
    """int64 [L] on the CPU: packed row of each leaf's last token."""
    items: Tensor | None = None
    """int32 [X, columns] on the device, a row for each item (gram_fast::leaf_items); None for "reference"."""
    window: Window | None = None
    """As of `TreeTables`. Items hold no more than it leaves."""

    @classmethod
    def of(
        cls,
        spans: Spans,
        leaf_rows_L: Tensor,
        backend: str,
        device: torch.device,
        at_least: tuple[int, int] = (0, 0),
        window: Window | None = None,
    ) -> "LeafTables":
        """Makes the tables of a pass for one backend; arguments and errors as `TreeTables.of`."""
        size, is_chunked = window.check() if window else (None, False)
        if backend == "reference":
            return cls(spans, leaf_rows_L, window=window)
        table = _C.leaf_items(*spans.arrays, leaf_rows_L.numpy(), at_least[0], size, is_chunked)
        return cls(spans, leaf_rows_L, _filled_up(table, at_least[1], device), window)

    def on(self, device: torch.device) -> "LeafTables":
        """The tables with their items copied to `device`; the host does not wait."""
        return self if self.items is None else replace(self, items=uploaded(self.items, device))


@dataclass(frozen=True)
class PathTables:
    """Tables of `path_attention`."""

    tiles_X4: Tensor
    """int32, on the device: first query, number of queries, first position, start of the path in `slots_P`."""
    slots_P: Tensor
    """int32, on the device: the slots of every path, from the root down."""
    tile_tokens: int
    """Most tokens of a tile."""

    @classmethod
    def of(cls, spans: Spans, group: int, device: torch.device) -> "PathTables":
        """Makes the tables of a pass; `group`: query heads per key/value head, 1 to 128. Errors as `TreeTables.of`."""
        check_group(group)
        spans.check(MAX_SLOTS)
        size = path_tile_tokens(group)
        tiles: list[tuple[int, int, int, int]] = []
        paths = []
        path = 0
        rows, offsets, ranges = spans.arrays
        for (start, end), low, high in zip(rows.tolist(), offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
            parts = [*ranges[low:high].tolist(), (start, end)]
            paths += [np.arange(*part, dtype=np.int32) for part in parts]
            length = sum(stop - begin for begin, stop in parts)
            position = length - (end - start)
            while position < length:
                count = min(size - position % size, length - position)
                tiles.append((end - (length - position), count, position, path))
                position += count
            path += length
        flat = np.concatenate(paths) if paths else np.empty(0, np.int32)
        # Longest walks first, so that the last programs of a launch are short ones.
        tiles.sort(key=lambda tile: -tile[2])
        tiles_X4 = torch.tensor(tiles, dtype=torch.int32).reshape(len(tiles), PATH_TILE_COLUMNS)
        return cls(uploaded(tiles_X4, device), uploaded(torch.from_numpy(flat), device), size)


def check_leaf_rows(leaf_rows_L: Tensor, num_tokens: int) -> None:
    """Raises ValueError unless the rows are int64 on the CPU and lie in [0, num_tokens)."""
    Sizes(CPU).check((torch.int64,), leaf_rows_L=leaf_rows_L)
    _C.check_leaf_rows(leaf_rows_L.numpy(), num_tokens)


def _filled_up(table: NDArray[np.int32], columns: int, device: torch.device) -> Tensor:
    """Copies the table to `device`, with zeros at its end up to the number of columns."""
    return uploaded(torch.from_numpy(filled_up(table, columns)), device)


def check_group(group: int) -> None:
    """Raises ValueError unless so many query heads per key/value head fit a tile."""
    expect(1 <= group <= TILE_ROWS, "group", f"1 to {TILE_ROWS} query heads a key/value head", group)
