"""Of candidates whose pairs are too long the longest are left out, and no more than that."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gram_fast.comparing.left_out import left_out

sizes = st.lists(st.integers(0, 9), min_size=2, max_size=9)


def long_pairs(pairs, of, limit):
    found = np.array(pairs, np.int64).reshape(-1, len(pairs[0]) if pairs else 2)
    lengths = np.array(of)[found].sum(axis=1)
    return found[lengths > limit], lengths[lengths > limit]


@given(sizes, st.integers(0, 18))
def test_of_any_two_the_longer_one_goes_until_all_others_fit(of, limit):
    pairs, lengths = long_pairs([(i, j) for i in range(len(of)) for j in range(i)], of, limit)
    found = left_out(pairs, lengths, np.array(of))
    out = list(found)
    stays = [c for c in range(len(of)) if c not in found]
    assert all(of[a] + of[b] <= limit for a in stays for b in stays if a != b)
    order = sorted(range(len(of)), key=lambda c: (-of[c], -c))
    assert out == order[: len(out)]
    if out:  # the last one had to go
        last = sorted([*(of[c] for c in stays), of[out[-1]]])
        assert sum(last[-2:]) > limit
    for c, pair in found.items():
        assert c in pairs[pair]
        left = [c, *out[out.index(c) + 1 :], *stays]
        assert lengths[pair] == of[c] + max(of[other] for other in left if other != c)


@given(sizes, st.integers(0, 18))
def test_what_does_not_fit_beside_a_reference_goes_and_the_reference_stays(of, limit):
    pairs, lengths = long_pairs([(0, c) for c in range(1, len(of))], of, limit)
    found = left_out(pairs, lengths, np.array([-1, *of[1:]]))
    assert set(found) == {c for c in range(1, len(of)) if of[0] + of[c] > limit}


@given(sizes, st.integers(0, 9))
def test_a_text_with_itself_and_texts_alone(of, limit):
    for width in (1, 2):
        pairs, lengths = long_pairs([(c,) * width for c in range(len(of))], of, limit)
        assert set(left_out(pairs, lengths, np.array(of))) == {c for c in range(len(of)) if of[c] * width > limit}
