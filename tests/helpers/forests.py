"""Sequences that share prefixes, as rounds of segments for `score`."""

from hypothesis import strategies as st

from helpers.small_models import VOCAB

# Few distinct tokens, so that segments share prefixes and are prefixes of each other.
few_tokens = st.lists(st.integers(3, 5), max_size=7)
any_tokens = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20)
segments = few_tokens | any_tokens


@st.composite
def forests(draw: st.DrawFn) -> tuple[list[int], list[list[list[list[int]]]]]:
    """A head and rounds of sequences of 1 to 6 segments from a small pool."""
    head = draw(few_tokens)
    pool = draw(st.lists(segments, min_size=1, max_size=5))
    last = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=9)
    depth = draw(st.integers(0, 5))
    sequence = st.tuples(st.lists(st.sampled_from(pool), min_size=depth, max_size=depth), last).map(
        lambda parts: [*parts[0], parts[1]]
    )
    return head, draw(st.lists(st.lists(sequence, min_size=1, max_size=6), min_size=1, max_size=3))
