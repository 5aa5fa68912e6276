"""Layouts of a batch: what they pack is the sequences, whatever those share."""

import numpy as np
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gram_fast.kernels.tree_attention import tree_mask
from gram_fast.training.data.packing import end_to_end, sharing_beginnings

# Few tokens, so that equal sequences, and beginnings of others, are frequent.
SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), min_size=1, max_size=8)


@given(SEQUENCES, st.integers(1, 9))
@example([[1], [1], [1, 2], [1, 2, 3], [1, 2]], 1)
@settings(max_examples=200, deadline=None)
def test_every_token_reads_its_beginning(sequences, multiple):
    arrays = [np.array(ids, np.int32) for ids in sequences]
    for pack in (end_to_end, sharing_beginnings):
        packed = pack(arrays).filled(multiple)
        mask_TT = tree_mask(*packed.spans, packed.spans.num_tokens, packed.spans.num_tokens)
        places = np.split(packed.places, np.cumsum([len(ids) for ids in sequences])[:-1])
        for ids, at in zip(sequences, places, strict=True):
            assert packed.input_ids[at].tolist() == ids
            assert packed.position_ids[at].tolist() == list(range(len(ids)))
            for depth, place in enumerate(at):
                assert sorted(at[: depth + 1]) == mask_TT[place].nonzero()[:, 0].tolist()


@given(SEQUENCES, st.integers(1, 9))
def test_what_fills_a_batch_up_is_read_by_no_sequence(sequences, multiple):
    plain = sharing_beginnings([np.array(ids, np.int32) for ids in sequences])
    filled = plain.filled(multiple)
    tokens, more = len(plain.input_ids), -len(plain.input_ids) % multiple
    assert len(filled.input_ids) == len(filled.position_ids) == filled.spans.num_tokens == tokens + more
    assert filled.places.max() < tokens
    assert torch.equal(filled.input_ids[:tokens], plain.input_ids)
    assert filled.position_ids[tokens:].tolist() == [0] * more


@given(SEQUENCES)
@settings(max_examples=100, deadline=None)
def test_every_distinct_beginning_is_one_token(sequences):
    packed = sharing_beginnings([np.array(ids, np.int32) for ids in sequences])
    beginnings = {tuple(ids[:n]) for ids in sequences for n in range(1, len(ids) + 1)}
    assert len(packed.input_ids) == len(packed.position_ids) == len(beginnings)
    assert set(packed.places.tolist()) == set(range(len(beginnings)))


def test_sequences_that_share_nothing_are_packed_in_order():
    arrays = [np.array(ids, np.int32) for ids in ([5, 6], [7], [8, 6, 5])]
    ours, plain = sharing_beginnings(arrays), end_to_end(arrays)
    for name in ("input_ids", "position_ids"):
        assert torch.equal(getattr(ours, name), getattr(plain, name))
    assert all(torch.equal(a, b) for a, b in zip(ours.spans, plain.spans, strict=True))
