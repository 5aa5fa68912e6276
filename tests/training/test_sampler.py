"""The order of an epoch: every pair once, those of a prompt together."""

import itertools
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from gram_fast.training.sampler import PromptSampler, fill_batches


def batches(order, size):
    return [order[first : first + size] for first in range(0, len(order), size)]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.integers(1, 9), st.integers(1, 9), st.integers(0, 3))
@settings(max_examples=200, deadline=None)
def test_every_pair_once_an_epoch(prompts, together, size, epoch):
    sampler = PromptSampler(prompts, together, max(size, together), 7, lambda: epoch)
    order = list(sampler)
    assert sorted(order) == list(range(len(prompts)))
    assert len(sampler) == len(prompts)
    # Another process, or a run that is resumed.
    assert list(PromptSampler(prompts, together, max(size, together), 7, lambda: epoch)) == order


@given(st.lists(st.integers(1, 6), min_size=1, max_size=40), st.integers(6, 9))
@settings(max_examples=200, deadline=None)
def test_chunks_are_divided_only_where_none_fits(lengths, size):
    chunks = [[(n, k) for k in range(length)] for n, length in enumerate(lengths)]
    found = batches(list(fill_batches(chunks, size)), size)
    assert Counter(element for batch in found for element in batch) == Counter(e for chunk in chunks for e in chunk)
    for batch, rest in itertools.pairwise(found):
        divided = {n for n, _ in batch} & {n for n, _ in rest}
        # At most one, the last of its batch; whatever came whole in later batches would not have fitted.
        assert len(divided) <= 1
        for n in divided:
            room = sum(element[0] == n for element in batch)
            later = found[found.index(rest) :]
            whole = Counter(element[0] for one in later for element in one)
            assert all(count > room for m, count in whole.items() if count == lengths[m])


def test_pairs_of_a_prompt_share_batches_and_epochs_differ():
    prompts = [n // 8 for n in range(80)]
    orders = []
    for epoch in range(2):
        orders.append(list(PromptSampler(prompts, 4, 8, 0, lambda epoch=epoch: epoch)))
        for batch in batches(orders[-1], 8):
            assert sorted(Counter(prompts[row] for row in batch).values()) in ([4, 4], [8])
    assert orders[0] != orders[1]
    # Which pairs of a prompt come together is drawn anew.
    groups = [{frozenset(batch[k : k + 4]) for batch in batches(order, 8) for k in (0, 4)} for order in orders]
    assert len(groups[0] & groups[1]) < 10
