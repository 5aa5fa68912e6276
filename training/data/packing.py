"""Layouts of a batch: sequences end to end, or the token tree of their shared beginnings.

A factored sequence is four parts, shared, first, second and tail: the second does not read the first and stands where
that does, behind the shared one, and the tail reads all, behind the longer of the two (docs/design/training.md).

Shape letters: T packed tokens, S sequences, M tokens of all sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gram_fast.ops import Spans
from gram_fast.scoring.tree import TokenTree, plan_round
from gram_fast.text.tokens import Ids

_NO_IDS = np.empty(0, np.int32)


@dataclass(frozen=True)
class Packed:
    """Sequences as packed tokens."""

    input_ids: Tensor
    """int64 [T]."""
    position_ids: Tensor
    """int64 [T], counted along the path from the root."""
    spans: Spans
    """What each token attends to."""
    places: NDArray[np.int64]
    """int64 [M]: the packed token of each token of the sequences, end to end."""

    def beside(self, other: "Packed") -> "Packed":
        """Appends another layout; no token of one reads the other."""
        count = len(self.input_ids)
        (spans, offsets, ranges), others = self.spans, other.spans
        return Packed(
            torch.cat([self.input_ids, other.input_ids]),
            torch.cat([self.position_ids, other.position_ids]),
            Spans(
                torch.cat([spans, others.spans_N2 + count]),
                torch.cat([offsets, others.range_offsets[1:] + len(ranges)]),
                torch.cat([ranges, others.ranges_R2 + count]),
            ),
            np.concatenate([self.places, other.places + count]),
        )

    def filled(self, multiple: int) -> "Packed":
        """Appends a sequence that stands for none of the M tokens, so that T is a multiple."""
        more = -len(self.input_ids) % multiple
        if not more:
            return self
        # All at position 0, which every model has.
        filling = self.input_ids.new_zeros(more)
        spans = Spans(torch.tensor([[0, more]]), torch.zeros(2, dtype=torch.int64), self.spans.ranges_R2[:0])
        return self.beside(Packed(filling, filling, spans, self.places[:0]))


def pack(sequences: Sequence[Ids], factored: Sequence[Sequence[Ids]], shares: bool) -> Packed:
    """Packs sequences, then factored ones, of four parts each.

    With `shares`, all of them as one token tree; without, the factored ones alone, as these share in any case what
    stands before the first and the second part.
    """
    if shares:
        return sharing_beginnings(sequences, factored)
    packed = end_to_end(sequences)
    return packed.beside(sharing_beginnings([], factored)) if factored else packed


def end_to_end(sequences: Sequence[Ids]) -> Packed:
    """Packs sequences one behind the other: T = M."""
    lengths = np.array([len(ids) for ids in sequences], np.int64)
    ends = torch.from_numpy(lengths.cumsum())
    starts = ends - torch.from_numpy(lengths)
    places = np.arange(lengths.sum())
    return Packed(
        input_ids=torch.from_numpy(np.concatenate([_NO_IDS, *sequences])).long(),
        position_ids=torch.from_numpy(places - starts.numpy().repeat(lengths)),
        spans=Spans(
            torch.stack([starts, ends], 1),
            torch.zeros(len(lengths) + 1, dtype=torch.int64),
            torch.empty((0, 2), dtype=torch.int64),
        ),
        places=places,
    )


def sharing_beginnings(sequences: Sequence[Ids], factored: Sequence[Sequence[Ids]] = ()) -> Packed:
    """Packs sequences, none of them empty, and factored ones, no tail of them, as their token tree.

    Every distinct prefix is packed once; of a factored sequence shared and first part are one, shared and second part
    another, which is packed by itself also where it is a first one.
    """
    tree = TokenTree([])
    whole = [[tree.add_segment(ids)] for ids in sequences]
    parts = [[tree.add_segment(ids) for ids in parts] for parts in factored]
    leaves = np.concatenate(
        [
            tree.add_sequences(np.array(whole, np.int32).reshape(-1, 1), 0),
            tree.add_verdicts(np.array(parts, np.int32).reshape(-1, 4)),
        ]
    )
    # Tails are no nodes of the tree.
    budget = tree.num_tokens + sum(len(tail) for *_, tail in factored)
    [packed] = plan_round(tree, leaves, budget=budget, keep_limit=0, more_rounds=False).passes
    spans, offsets, ranges = packed.spans.arrays
    ends = packed.leaf_rows.numpy()[packed.leaf_index.argsort()] + 1
    paths = []
    # A leaf's path: what its span reads, and the span up to the leaf; of a factored sequence its parts in order.
    for span, end in zip(np.searchsorted(spans[:, 1], ends), ends, strict=True):
        extents = [*ranges[offsets[span] : offsets[span + 1]], (spans[span, 0], end)]
        paths += [np.arange(low, high) for low, high in extents]
    return Packed(packed.input_ids, packed.position_ids, packed.spans, np.concatenate(paths))
