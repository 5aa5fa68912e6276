"""Layouts of a batch: sequences end to end, or the token tree of their shared beginnings.

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

    def filled(self, multiple: int) -> "Packed":
        """Appends a sequence that stands for none of the M tokens, so that T is a multiple."""
        num_tokens = len(self.input_ids)
        more = -num_tokens % multiple
        if not more:
            return self
        spans, offsets, ranges = self.spans
        # All at position 0, which every model has.
        filling = self.input_ids.new_zeros(more)
        return Packed(
            torch.cat([self.input_ids, filling]),
            torch.cat([self.position_ids, filling]),
            Spans(
                torch.cat([spans, spans.new_tensor([[num_tokens, num_tokens + more]])]),
                torch.cat([offsets, offsets[-1:]]),
                ranges,
            ),
            self.places,
        )


def end_to_end(sequences: Sequence[Ids]) -> Packed:
    """Packs sequences one behind the other: T = M."""
    lengths = np.array([len(ids) for ids in sequences])
    ends = torch.from_numpy(lengths.cumsum())
    starts = ends - torch.from_numpy(lengths)
    places = np.arange(lengths.sum())
    return Packed(
        input_ids=torch.from_numpy(np.concatenate(sequences)).long(),
        position_ids=torch.from_numpy(places - starts.numpy().repeat(lengths)),
        spans=Spans(
            torch.stack([starts, ends], 1),
            torch.zeros(len(lengths) + 1, dtype=torch.int64),
            torch.empty((0, 2), dtype=torch.int64),
        ),
        places=places,
    )


def sharing_beginnings(sequences: Sequence[Ids]) -> Packed:
    """Packs sequences, none of them empty, as their token tree: every distinct prefix once."""
    tree = TokenTree([])
    segments = [[tree.add_segment(ids)] for ids in sequences]
    leaves = tree.add_sequences(segments, 0)
    [packed] = plan_round(tree, leaves, budget=tree.num_tokens, keep_limit=0, more_rounds=False).passes
    spans, offsets, ranges = packed.spans.arrays
    ends = packed.leaf_rows.numpy() + 1
    paths = []
    # A leaf's path: what its span reads, and the span up to the leaf.
    for span, end in zip(np.searchsorted(spans[:, 1], ends), ends, strict=True):
        parts = [*ranges[offsets[span] : offsets[span + 1]], (spans[span, 0], end)]
        paths += [np.arange(low, high) for low, high in parts]
    return Packed(packed.input_ids, packed.position_ids, packed.spans, np.concatenate(paths))
