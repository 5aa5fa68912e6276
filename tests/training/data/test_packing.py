"""Layouts of a batch: what they pack is the sequences, whatever those share."""

import numpy as np
import torch
from helpers.factored import factored_mask, factored_positions
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gram_fast.kernels.tree_attention import tree_mask
from gram_fast.training.data.packing import end_to_end, pack, sharing_beginnings

# Few tokens, so that equal sequences, and beginnings of others, are frequent.
SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=7), min_size=1, max_size=8)

PART = st.lists(st.integers(0, 2), max_size=4)
PARTS = st.tuples(PART, PART, PART, st.lists(st.integers(0, 2), min_size=1, max_size=3))


@given(SEQUENCES, st.integers(1, 9))
@example([[1], [1], [1, 2], [1, 2, 3], [1, 2]], 1)
@settings(max_examples=200, deadline=None)
def test_every_token_reads_its_beginning(sequences, multiple):
    arrays = [np.array(ids, np.int32) for ids in sequences]
    for shares in (False, True):
        packed = pack(arrays, [], shares).filled(multiple)
        mask_TT = tree_mask(*packed.spans, packed.spans.num_tokens, packed.spans.num_tokens)
        places = np.split(packed.places, np.cumsum([len(ids) for ids in sequences])[:-1])
        for ids, at in zip(sequences, places, strict=True):
            assert packed.input_ids[at].tolist() == ids
            assert packed.position_ids[at].tolist() == list(range(len(ids)))
            for depth, place in enumerate(at):
                assert sorted(at[: depth + 1]) == mask_TT[place].nonzero()[:, 0].tolist()


@given(SEQUENCES | st.just([]), st.lists(PARTS, min_size=1, max_size=6), st.booleans(), st.integers(1, 9))
@example([], [([], [], [], [1])], False, 1)
@example([[0, 1]], [([0], [1], [1], [2]), ([0], [1], [1], [2]), ([0], [1, 2], [1], [2])], True, 4)
@settings(max_examples=200, deadline=None)
def test_every_token_of_factored_sequences_reads_what_the_dense_mask_says(sequences, factored, shares, multiple):
    """Beside those that are not, which read as ever."""
    sizes = [tuple(map(len, parts)) for parts in factored]
    layouts = [
        ([token for part in parts for token in part], factored_mask(*of_parts), factored_positions(*of_parts))
        for parts, of_parts in zip(factored, sizes, strict=True)
    ]
    whole = [(ids, torch.ones(len(ids), len(ids)).tril().bool(), torch.arange(len(ids))) for ids in sequences]
    arrays = [[np.array(ids, np.int32) for ids in parts] for parts in factored]
    packed = pack([np.array(ids, np.int32) for ids in sequences], arrays, shares).filled(multiple)
    length = packed.spans.num_tokens
    assert len(packed.input_ids) == length == len(packed.position_ids)
    assert length % multiple == 0
    mask_TT = tree_mask(*packed.spans, length, length)
    places = np.split(packed.places, np.cumsum([len(ids) for ids, *_ in whole + layouts])[:-1])
    for (ids, reads, positions), at in zip(whole + layouts, places, strict=True):
        assert packed.input_ids[at].tolist() == ids
        assert torch.equal(packed.position_ids[at], positions)
        assert len(set(at)) == len(at)
        for row, place in zip(reads, at, strict=True):
            assert sorted(at[row.numpy()]) == mask_TT[place].nonzero()[:, 0].tolist()


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


def test_both_orders_of_a_pair_share_what_begins_alike():
    """What is read first with what is read first, and second with second; without `shares`, factored ones alone."""
    whole = [np.array([5, 6, 7], np.int32)] * 2
    orders = [([5, 6], [1, 8, 8], [2, 9], [3]), ([5, 6], [1, 9], [2, 8, 8], [3])]
    factored = [[np.array(ids, np.int32) for ids in parts] for parts in orders]
    tokens = len("56") + len("1889") + len("2988") + len("33")
    assert len(pack(whole, factored, shares=False).input_ids) == tokens + len("567567")
    assert len(pack(whole, factored, shares=True).input_ids) == tokens + len("7")
